"""LAION aesthetics v2: a head of linear layers on the normalized CLIP ViT-L/14 embedding of an image; blind to prompts."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...core.device import best_device
from ...core.errors import IntegrityError, PrefloopError
from ...core.ids import canonical
from . import checkpoints as files
from .dual_encoder import Embeddings, EmbeddingScoreMixin, normalized
from .pixels import center_cropped
from .precision import AUTO, automatic_dtype, torch_dtype
from .sources import Source, official
from .transformers_clip import load_clip_vision, vision_settings

if TYPE_CHECKING:
    from PIL.Image import Image

BACKBONE = Source(
    repository="openai/clip-vit-large-patch14",
    files=("config.json", "model.safetensors"),
    n_bytes=1_710_540_580,  # size and sha256: the hub's pages of two unchanged copies of the file
    sha256={"model.safetensors": "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"},
)
HEAD = "sac+logos+ava1-l14-linearMSE.pth"
PINS = {HEAD: "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"}
HEAD_URL = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth"
)
PUBLISHED_HEAD = Source(files=(HEAD,), url=HEAD_URL, n_bytes=3_712_000, sha256=PINS)  # 927,969 float32 parameters


class Aesthetics(EmbeddingScoreMixin):
    """Checkpoint: the head's file, with OpenAI's backbone from the hub, or a folder that contains both."""

    name = "aesthetics"
    needs_prompt = False
    temperature = 1.0
    reads = (PUBLISHED_HEAD, BACKBONE)
    # no weights_license: neither the head's repository nor the backbone's card was seen to name one
    wants_gpu = True

    def __init__(self, checkpoint: str | None = None, device: str | None = None, dtype: str = AUTO) -> None:
        path = _find(checkpoint)
        if path.is_dir():
            self.head, self.folder = _head_in(path), path
        else:
            self.head, self.folder = path, official(self.name, BACKBONE)
        self.device = device
        self.dtype = automatic_dtype(device) if dtype == AUTO else dtype
        digest = files.checked(self.head, PINS)
        backbone = files.checked(self.folder / "model.safetensors", {})
        self.settings = vision_settings(self.folder / "config.json")
        self.backbone = files.revision(
            backbone, "shortest side, crop as torchvision, 2", self.dtype, canonical(self.settings)
        )
        self.revision = files.revision(digest, self.backbone)
        self.files = [self.head, self.folder / "model.safetensors"]
        self.sources = {"checkpoint": checkpoint, "sha256": digest, "backbone_sha256": backbone}
        self.digest, self.backbone_digest = digest, backbone

    @staticmethod
    def check_weights(checkpoint: str | None) -> str:
        """Read the head alone and compare it with the published one; returns a line that says what it is.

        Raises:
            IntegrityError: if the file has the published name or hash but other values.
        """
        path = _find(checkpoint)
        path = _head_in(path) if path.is_dir() else path
        digest = files.checked(path, PINS)
        weight, bias = collapsed(files.load_tensors(path), path)
        values = known_values(weight, bias)
        text = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        if digest not in PINS.values():
            return f"not the published head: {text}"
        if any(abs(value - KNOWN[name]) > 1e-4 for name, value in values.items()):
            raise IntegrityError(f"{path} has the published sha256 but is read wrongly: {text}; expected {KNOWN}")
        return f"the published head: {text}"

    @property
    def size(self) -> int:
        return self.settings.get("image_size", 224)

    @cached_property
    def _head(self) -> tuple[NDArray[np.float32], float]:
        return collapsed(files.load_tensors(self.head, self.digest), self.head)

    @cached_property
    def _model(self) -> Any:
        model = load_clip_vision(
            self.settings, self.folder / "model.safetensors", torch_dtype(self.dtype), self.backbone_digest
        )
        return model.to(best_device(self.device))

    def preprocess(self, image: "Image") -> Any:
        return center_cropped(image, self.size, "torchvision")

    def embed_images(self, pixels: Sequence[Any]) -> Embeddings:
        import torch

        with torch.inference_mode():
            batch = torch.stack(list(pixels)).to(self._model.device, self._model.dtype)
            return normalized(self._model(pixel_values=batch).image_embeds)

    def embed_prompts(self, prompts: Sequence[str]) -> Embeddings:
        raise NotImplementedError("aesthetics is blind to prompts")

    def score_embeddings(self, images: Embeddings, prompts: Embeddings | None) -> Any:  # noqa: ARG002
        """About 1 to 10."""
        weight, bias = self._head
        if images.shape[1] != len(weight):
            raise IntegrityError(
                f"the head {self.head} takes embeddings of {len(weight)} values, but the backbone {self.folder} "
                f"gives {images.shape[1]}; the published head belongs to {BACKBONE.name}"
            )
        return (images.astype(np.float64) @ weight + bias).astype(np.float32)


# The published head as one layer: score = w·x + b for an embedding x of length 1.
KNOWN = {"‖w‖": 17.9956, "b": 5.2366458, "score(e₀)": 4.5450524, "score(uniform)": 4.8832849}


def known_values(weight: NDArray[np.float32], bias: float) -> dict[str, float]:
    """Norm and bias of a head, and its scores of the first and of the uniform unit vector."""
    w = weight.astype(np.float64)
    uniform = bias + w.sum() / np.sqrt(len(w))
    return dict(zip(KNOWN, (float(np.linalg.norm(w)), bias, bias + float(w[0]), float(uniform)), strict=True))


def _find(checkpoint: str | None) -> Path:
    return files.find("aesthetics", checkpoint) if checkpoint else official("aesthetics", PUBLISHED_HEAD)


def collapsed(state: dict[str, Any], path: Path) -> tuple[NDArray[np.float32], float]:
    """The head's layers as one: weight (E,) and bias. No activation lies between them, so their product is exact.

    Raises:
        IntegrityError: if the layers do not fit one another, or do not end in one number.
    """
    parts = [name.split(".") for name in state]
    numbers = sorted({int(part[1]) for part in parts if part[0] == "layers" and len(part) == 3 and part[1].isdigit()})
    weight, bias = None, None
    for number in numbers:
        names = f"layers.{number}.weight", f"layers.{number}.bias"
        if not state.keys() >= set(names):
            break
        w, b = (state[name].double().numpy() for name in names)
        if w.ndim != 2 or b.shape != w.shape[:1] or (weight is not None and w.shape[1] != weight.shape[0]):
            break
        bias = b if bias is None else w @ bias + b
        weight = w if weight is None else w @ weight
    else:
        if weight is not None and bias is not None and weight.shape[0] == 1:
            return weight[0].astype(np.float32), float(bias[0])
    raise IntegrityError(f"{path} is not an aesthetics head: its linear layers do not end in one number")


def _head_in(folder: Path) -> Path:
    names = sorted([*folder.glob("head.*"), *folder.glob("*.pth")])
    if not names:
        raise PrefloopError(f"no aesthetics head in {folder}; put head.safetensors or {HEAD} into it")
    return names[0]
