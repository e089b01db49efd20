"""ImageReward v1.0, arXiv 2304.05977: BLIP's text model attends to the image, linear layers give the reward.

The reward needs the whole grid of image features, so nothing is cached: each image and prompt runs through both models.
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
from .pixels import center_cropped
from .precision import AUTO, automatic_dtype, torch_dtype
from .sources import Source, official
from .vocabulary import read_vocabulary

if TYPE_CHECKING:
    from PIL.Image import Image

WEIGHTS = Source(
    repository="zai-org/ImageReward",
    files=("ImageReward.pt",),
    n_bytes=1_786_880_927,  # size and sha256: the hub's commit 7a9e21f, which added the file
    sha256={"ImageReward.pt": "d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6"},
)
TOKENIZER = Source(
    repository="google-bert/bert-base-uncased",
    files=("tokenizer.json",),
    n_bytes=466_000,  # as the hub shows it
)
MAX_TOKENS = 35
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the rewards on its authors' test set
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
    """Checkpoint: the published file, with BERT's tokenizer from the hub, or a folder that contains both."""

    name = "imagereward"
    needs_prompt = True
    temperature = 1.0
    reads = (WEIGHTS, TOKENIZER)
    weights_license = "Apache-2.0"  # the cards of both repositories
    wants_gpu = True

    def __init__(self, checkpoint: str | None = None, device: str | None = None, dtype: str = AUTO) -> None:
        path = files.find(self.name, checkpoint) if checkpoint else official(self.name, WEIGHTS)
        self.weights_file = _weights_in(path) if path.is_dir() else path
        self.vocabulary = read_vocabulary(path if path.is_dir() else official(self.name, TOKENIZER).parent, "BERT")
        self.device = device
        self.dtype = automatic_dtype(device) if dtype == AUTO else dtype
        digest = self.digest = files.checked(self.weights_file, {})
        self.revision = files.revision(
            digest, "shortest side, crop as torchvision, 35 words, 1", self.dtype, self.vocabulary.digest
        )
        self.files = [self.weights_file]
        self.sources = {"checkpoint": checkpoint or WEIGHTS.name, "sha256": digest}

    @cached_property
    def _parts(self) -> tuple[Any, Any, Any, Any]:
        quiet_libraries()
        state = files.load_tensors(self.weights_file, self.digest)
        try:
            vision_model, text_model, head = _models(state)
        except (KeyError, RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[-1].strip()[:200]
            raise IntegrityError(
                f"{self.weights_file} is not an ImageReward checkpoint: {line} is missing or does not fit"
            ) from error
        device, dtype = best_device(self.device), torch_dtype(self.dtype)
        tokenizer = self.vocabulary.tokenizer(text_model.config.vocab_size)
        return (
            vision_model.eval().to(device, dtype),
            text_model.eval().to(device, dtype),
            head.eval().to(device),
            tokenizer,
        )

    def n_truncated(self, prompts: Sequence[str]) -> int:
        return n_longer(self._parts[-1], prompts, MAX_TOKENS)

    def score(self, prompts: Sequence[str], images: "Sequence[Image]") -> Any:
        """float32 (B,), about -2 to 2."""
        import torch

        vision_model, text_model, head, tokenizer = self._parts
        pixels = torch.stack([center_cropped(image, vision_model.config.image_size, "torchvision") for image in images])
        tokens = tokenizer(
            list(prompts), padding="longest", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )  # as padding to 35 would, within a float's rounding: the same revision
        with torch.inference_mode():
            grid = vision_model(pixel_values=pixels.to(vision_model.device, vision_model.dtype)).last_hidden_state
            text_features = text_model(
                input_ids=tokens.input_ids.to(vision_model.device),
                attention_mask=tokens.attention_mask.to(vision_model.device),
                encoder_hidden_states=grid,
                is_decoder=False,
            ).last_hidden_state[:, 0]
            return ((head(text_features.float())[:, 0] - MEAN) / STD).cpu().numpy()


def _models(state: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The vision model, the text model and the head, with sizes taken from the weights.

    Raises:
        KeyError, RuntimeError and others: if weights are missing or have another shape or name.
    """
    import torch
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    vision = {_renamed(name): value for name, value in _with_prefix(state, "blip.visual_encoder.").items()}
    text = _with_prefix(state, "blip.text_encoder.")
    text.pop("embeddings.position_ids", None)
    patch = vision["embeddings.patch_embedding.weight"]
    side = round((vision["embeddings.position_embedding"].shape[1] - 1) ** 0.5)
    vision_model = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=patch.shape[0],
            intermediate_size=vision["encoder.layers.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=_n_layers(vision, "encoder.layers."),
            num_attention_heads=patch.shape[0] // HEAD_WIDTH,
            image_size=side * patch.shape[-1],
            patch_size=patch.shape[-1],
            layer_norm_eps=1e-6,
        )
    )
    embeddings = text["embeddings.word_embeddings.weight"]
    text_model = BlipTextModel(
        BlipTextConfig(
            vocab_size=embeddings.shape[0],
            hidden_size=embeddings.shape[1],
            encoder_hidden_size=patch.shape[0],
            intermediate_size=text["encoder.layer.0.intermediate.dense.weight"].shape[0],
            num_hidden_layers=_n_layers(text, "encoder.layer."),
            num_attention_heads=embeddings.shape[1] // HEAD_WIDTH,
            max_position_embeddings=text["embeddings.position_embeddings.weight"].shape[0],
        ),
        add_pooling_layer=False,
    )
    linear = _with_prefix(state, "mlp.layers.")
    numbers = sorted({int(name.split(".")[0]) for name in linear})
    head = torch.nn.Sequential(*(torch.nn.Linear(*reversed(linear[f"{number}.weight"].shape)) for number in numbers))
    vision_model.load_state_dict(vision)
    text_model.load_state_dict(text)
    head.load_state_dict({f"{numbers.index(int(n.split('.')[0]))}.{n.split('.')[1]}": v for n, v in linear.items()})
    return vision_model, text_model, head


def _with_prefix(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not part:
        raise KeyError(prefix)
    return part


def _renamed(name: str) -> str:
    for old, new in _RENAMED:
        renamed, n = re.subn(f"^{old}", new, name)
        if n:
            return renamed
    return name


def _n_layers(state: dict[str, Any], prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix))


def _weights_in(folder: Path) -> Path:
    names = sorted([*folder.glob("*.safetensors"), *folder.glob("*.pt")])
    return names[0] if names else folder / "ImageReward.pt"
