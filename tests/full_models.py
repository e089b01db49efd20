"""Random weights in the scorers' official formats: ViT-H/14 and ViT-L/14 at 224 pixels and 77 tokens, narrower, with two
layers. They vary more than those of a fresh model, so that different images get clearly different scores."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from plain_clip import vocabulary_and_merges
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

WIDTHS = {"vision": 80, "text": 64}
HEADS = {"vision": 5, "text": 4}
EMBEDDING = 48
HEAD_LAYERS = {0: (24, EMBEDDING), 2: (16, 24), 4: (8, 16), 6: (1, 8)}
"""Number → shape of the aesthetics head's layers. The published head has 0, 2, 4, 6 and 7, with dropout between."""


def _randomized(model: Any) -> Any:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.7 * parameter.flatten(1).shape[1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model.eval()


def transformers_clip(folder: Path, activation: str = "gelu") -> CLIPModel:
    """A CLIPModel with tokenizer, in the format of PickScore and of OpenAI's backbone."""
    torch.manual_seed(1)
    config = CLIPConfig(
        projection_dim=EMBEDDING,
        text_config={
            "hidden_size": WIDTHS["text"],
            "intermediate_size": 4 * WIDTHS["text"],
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS["text"],
            "hidden_act": activation,
            "vocab_size": 49408,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
            "pad_token_id": 49407,
        },
        vision_config={
            "projection_dim": EMBEDDING,
            "hidden_size": WIDTHS["vision"],
            "intermediate_size": 4 * WIDTHS["vision"],
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS["vision"],
            "hidden_act": activation,
            "image_size": 224,
            "patch_size": 14,
        },
    )
    model = _randomized(CLIPModel(config))
    model.save_pretrained(folder)
    vocabulary, merges = vocabulary_and_merges()
    kind: Any = CLIPTokenizer
    kind(vocab=vocabulary, merges=merges, model_max_length=77).save_pretrained(folder)
    return model


def open_clip_folder(folder: Path, name: str, wrapped: bool = False) -> dict[str, Any]:
    """Write the settings of a narrower ViT-H-14 and a checkpoint; returns its weights.

    Args:
        wrapped: put them under the key state_dict beside the epoch, as in the published HPS.
    """
    folder.mkdir()
    settings = open_clip.get_model_config("ViT-H-14")
    assert settings is not None
    settings["embed_dim"] = EMBEDDING
    settings["vision_cfg"] |= {
        "layers": 2,
        "width": WIDTHS["vision"],
        "head_width": WIDTHS["vision"] // HEADS["vision"],
    }
    settings["text_cfg"] |= {"layers": 2, "width": WIDTHS["text"], "heads": HEADS["text"]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": {}}))
    torch.manual_seed(2)
    state = _randomized(open_clip.create_model(f"local-dir:{folder}", load_weights=False)).state_dict()
    if name.endswith(".safetensors"):
        save_file({key: value.contiguous() for key, value in state.items()}, folder / name)
    else:
        torch.save({"epoch": 1, "state_dict": state} if wrapped else state, folder / name)
    return state


def aesthetics_head(path: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    state = {}
    for number, shape in HEAD_LAYERS.items():
        state[f"layers.{number}.weight"] = torch.randn(shape) * shape[1] ** -0.5
        state[f"layers.{number}.bias"] = torch.randn(shape[0])
    torch.save(state, path)
    return state
