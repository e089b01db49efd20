"""ImageReward v1.0, arXiv 2304.05977: BLIP reads the prompt while it looks at the picture, linear layers give the reward.

The picture's embedding depends on no prompt, but the reward needs its whole grid: nothing is kept, each pair is run whole.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.device import best_device
from ...core.errors import IntegrityError
from ...core.progress import quiet_libraries
from . import checkpoints as files
from .dual_encoder import n_longer
from .pixels import cropped
from .precision import torch_dtype
from .vocabulary import read_vocabulary

if TYPE_CHECKING:
    from PIL.Image import Image

OFFICIAL = "zai-org/ImageReward/ImageReward.pt"
WORDS = "google-bert/bert-base-uncased"
MOST_WORDS = 35
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072  # of the rewards of its authors' test set
HEAD_WIDTH = 64

# BLIP's own names → those of transformers
_RENAMED = (
    (r"cls_token$", "embeddings.class_embedding"),
    (r"pos_embed$", "embeddings.position_embedding"),
    (r"patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"blocks\.(\d+)\.attn\.", r"encoder.layers.\1.self_attn."),
    (r"blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"blocks\.(\d+)\.", r"encoder.layers.\1."),
    (r"norm\.", "post_layernorm."),
)


class ImageReward:
    """Weights: the published file, beside BERT's tokenizer from the hub, or a folder that holds both."""

    name = "imagereward"
    needs_prompt = True
    temperature = 1.0

    def __init__(self, weights: str | None = None, device: str | None = None, dtype: str = "float32") -> None:
        found = files.find(self.name, weights, OFFICIAL)
        self.checkpoint = _checkpoint_in(found) if found.is_dir() else found
        self.vocabulary = read_vocabulary(found if found.is_dir() else files.from_hub(self.name, WORDS), "BERT")
        self.device, self.dtype = device, dtype
        digest = files.checked(self.checkpoint, {})
        self.revision = files.revision(
            digest, "shortest side, crop as torchvision, 35 words, 1", dtype, self.vocabulary.digest
        )
        self.files = [self.checkpoint]
        self.sources = {"weights": weights or OFFICIAL, "sha256": digest}

    @cached_property
    def _parts(self) -> tuple[Any, Any, Any, Any]:
        quiet_libraries()
        state = files.load_tensors(self.checkpoint)
        try:
            eye, reader, head = _models(state)
        except (KeyError, RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[-1].strip()[:200]
            raise IntegrityError(
                f"{self.checkpoint} holds no ImageReward: {line} is missing or does not fit"
            ) from error
        where, kind = best_device(self.device), torch_dtype(self.dtype)
        tokenizer = self.vocabulary.tokenizer(reader.config.vocab_size)
        return eye.eval().to(where, kind), reader.eval().to(where, kind), head.eval().to(where), tokenizer

    def n_truncated(self, prompts: Sequence[str]) -> int:
        return n_longer(self._parts[-1], prompts, MOST_WORDS)

    def score(self, prompts: Sequence[str], images: "Sequence[Image]") -> Any:
        """float32 (B,), about -2 to 2."""
        import torch

        eye, reader, head, tokenizer = self._parts
        pixels = torch.stack([cropped(image, eye.config.image_size, "torchvision") for image in images])
        words = tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=MOST_WORDS, return_tensors="pt"
        )
        with torch.inference_mode():
            grid = eye(pixel_values=pixels.to(eye.device, eye.dtype)).last_hidden_state
            read = reader(
                input_ids=words.input_ids.to(eye.device),
                attention_mask=words.attention_mask.to(eye.device),
                encoder_hidden_states=grid,
                is_decoder=False,
            ).last_hidden_state[:, 0]
            return ((head(read.float())[:, 0] - MEAN) / DEVIATION).cpu().numpy()


def _models(state: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The picture's tower, the reader of the prompt, and the head, of the sizes that the weights have.

    Raises:
        Errors of many kinds: where weights are missing, of another shape or of another name.
    """
    import torch
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    seen = {_renamed(name): value for name, value in _below(state, "blip.visual_encoder.").items()}
    read = _below(state, "blip.text_encoder.")
    read.pop("embeddings.position_ids", None)
    patch = seen["embeddings.patch_embedding.weight"]
    side = round((seen["embeddings.position_embedding"].shape[1] - 1) ** 0.5)
    eye = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=patch.shape[0],
            intermediate_size=seen["encoder.layers.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=_layers(seen, "encoder.layers."),
            num_attention_heads=patch.shape[0] // HEAD_WIDTH,
            image_size=side * patch.shape[-1],
            patch_size=patch.shape[-1],
            layer_norm_eps=1e-6,
        )
    )
    words = read["embeddings.word_embeddings.weight"]
    reader = BlipTextModel(
        BlipTextConfig(
            vocab_size=words.shape[0],
            hidden_size=words.shape[1],
            encoder_hidden_size=patch.shape[0],
            intermediate_size=read["encoder.layer.0.intermediate.dense.weight"].shape[0],
            num_hidden_layers=_layers(read, "encoder.layer."),
            num_attention_heads=words.shape[1] // HEAD_WIDTH,
            max_position_embeddings=read["embeddings.position_embeddings.weight"].shape[0],
        ),
        add_pooling_layer=False,
    )
    linear = _below(state, "mlp.layers.")
    numbers = sorted({int(name.split(".")[0]) for name in linear})
    head = torch.nn.Sequential(*(torch.nn.Linear(*reversed(linear[f"{one}.weight"].shape)) for one in numbers))
    eye.load_state_dict(seen)
    reader.load_state_dict(read)
    head.load_state_dict({f"{numbers.index(int(n.split('.')[0]))}.{n.split('.')[1]}": v for n, v in linear.items()})
    return eye, reader, head


def _below(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not found:
        raise KeyError(prefix)
    return found


def _renamed(name: str) -> str:
    for old, new in _RENAMED:
        renamed, n = re.subn(f"^{old}", new, name)
        if n:
            return renamed
    return name


def _layers(state: dict[str, Any], prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix))


def _checkpoint_in(folder: Path) -> Path:
    names = sorted([*folder.glob("*.safetensors"), *folder.glob("*.pt")])
    return names[0] if names else folder / "ImageReward.pt"
