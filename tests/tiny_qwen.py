"""Checkpoints of HPSv3 and Qwen2-VL in the published layouts, small enough for tests."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

HIDDEN, LAYERS = 32, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
# as config.json of Qwen/Qwen2-VL-7B-Instruct, in its names and its order, with smaller numbers
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "max_position_embeddings": 32768,
    "max_window_layers": LAYERS,
    "model_type": "qwen2_vl",
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 2,
        "embed_dim": 24,
        "mlp_ratio": 4,
        "num_heads": 2,
        "in_chans": 3,
        "hidden_size": HIDDEN,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    "vocab_size": 152064,
}


def tokenizer(text: str, added: list[str] = SPECIAL) -> Tokenizer:
    """A byte-level tokenizer with Qwen's pieces, its pairs learned from a text."""
    made: Any = Tokenizer(BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([text], BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens(added)
    return made


def weights(n_tokens: int) -> dict[str, Tensor]:
    """A state dict of HPSv3 under the names of the published file, which are those of transformers 4.45."""
    kind: Any = Qwen2VLConfig
    config = kind(**copy.deepcopy(CONFIG) | {"vocab_size": n_tokens})  # a copy, since the class changes it
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, value in Qwen2VLForConditionalGeneration(config).state_dict().items():
        old = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        scale = 0.3 if value.ndim > 1 else 0.1
        noise = torch.randn(value.shape, generator=generator) * scale
        state[old] = noise + 1 if "norm" in old and old.endswith("weight") else noise
    for number, (to, of) in {0: (1024, HIDDEN), 3: (16, 1024), 5: (2, 16)}.items():
        state[f"rm_head.{number}.weight"] = torch.randn(to, of, generator=generator) * of**-0.5
        state[f"rm_head.{number}.bias"] = torch.randn(to, generator=generator) * 0.1
    return state


def save(
    folder: Path, state: dict[str, Tensor], made: Tokenizer, config: dict[str, Any] = CONFIG, parts: int = 1
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    made.save(str(folder / "tokenizer.json"))
    if parts == 1:
        save_file(state, folder / "HPSv3.safetensors")
        return folder
    names = sorted(state)
    index = {}
    for part in range(parts):
        file = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        own = names[part::parts]
        save_file({name: state[name] for name in own}, folder / file)
        index |= dict.fromkeys(own, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder
