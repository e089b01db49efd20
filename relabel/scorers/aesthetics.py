"""LAION aesthetics v2: a head of linear layers on the normalised CLIP ViT-L/14 embedding of a picture; blind to prompts."""

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
from .dual_encoder import Embedding, Embeddings, normalised
from .pixels import cropped
from .precision import torch_dtype
from .transformers_clip import load_clip_vision, vision_settings

if TYPE_CHECKING:
    from PIL.Image import Image

BACKBONE = "openai/clip-vit-large-patch14"
HEAD = "sac+logos+ava1-l14-linearMSE.pth"
PINS = {HEAD: "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"}
HEAD_URL = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth"
)


class Aesthetics(Embedding):
    """Weights: the head's file, beside OpenAI's backbone from the hub, or a folder that holds both."""

    name = "aesthetics"
    needs_prompt = False
    temperature = 1.0

    def __init__(self, weights: str | None = None, device: str | None = None, dtype: str = "float32") -> None:
        found = _found(weights)
        if found.is_dir():
            self.head, self.folder = _head_in(found), found
        else:
            self.head, self.folder = found, files.from_hub(self.name, BACKBONE)
        self.device, self.dtype = device, dtype
        digest = files.checked(self.head, PINS)
        backbone = files.checked(self.folder / "model.safetensors", {})
        self.settings = vision_settings(self.folder / "config.json")
        self.backbone = files.revision(
            backbone, "shortest side, crop as torchvision, 2", dtype, canonical(self.settings)
        )
        self.revision = files.revision(digest, self.backbone)
        self.files = [self.head, self.folder / "model.safetensors"]
        self.sources = {"weights": weights, "sha256": digest, "backbone_sha256": backbone}

    @staticmethod
    def check_weights(weights: str | None) -> str:
        """Read the head alone and compare it with what is known of the published one; says what was found.

        Raises:
            IntegrityError: where the file has the published one's name or hash and gives other values.
        """
        found = _found(weights)
        path = _head_in(found) if found.is_dir() else found
        digest = files.checked(path, PINS)
        weight, bias = collapsed(files.load_tensors(path), path)
        values = known_values(weight, bias)
        words = ", ".join(f"{what} {value:.4f}" for what, value in values.items())
        if digest not in PINS.values():
            return f"another head than the published one: {words}"
        off = {what: value for what, value in values.items() if abs(value - KNOWN[what]) > 1e-4}
        if off:
            raise IntegrityError(f"{path} is read wrongly: {words}; expected {KNOWN}")
        return f"the published head: {words}"

    @property
    def size(self) -> int:
        return self.settings.get("image_size", 224)

    @cached_property
    def _head(self) -> tuple[NDArray[np.float32], float]:
        return collapsed(files.load_tensors(self.head), self.head)

    @cached_property
    def _model(self) -> Any:
        model = load_clip_vision(self.settings, self.folder / "model.safetensors", torch_dtype(self.dtype))
        return model.to(best_device(self.device))

    def preprocess(self, image: "Image") -> Any:
        return cropped(image, self.size, "torchvision")

    def embed_images(self, pixels: Sequence[Any]) -> Embeddings:
        import torch

        with torch.inference_mode():
            batch = torch.stack(list(pixels)).to(self._model.device, self._model.dtype)
            return normalised(self._model(pixel_values=batch).image_embeds)

    def embed_prompts(self, prompts: Sequence[str]) -> Embeddings:
        raise NotImplementedError("aesthetics is blind to prompts")

    def score_embeddings(self, images: Embeddings, prompts: Embeddings | None) -> Any:  # noqa: ARG002
        """About 1 to 10."""
        weight, bias = self._head
        if images.shape[1] != len(weight):
            raise IntegrityError(
                f"the head {self.head} reads embeddings of {len(weight)} values, the backbone {self.folder} "
                f"gives {images.shape[1]}; the published head belongs to {BACKBONE}"
            )
        return (images.astype(np.float64) @ weight + bias).astype(np.float32)


# Of the published head as one layer: score = w·x + b for an embedding x of length 1.
KNOWN = {"‖w‖": 17.9956, "b": 5.2366458, "score(e₀)": 4.5450524, "score(uniform)": 4.8832849}


def known_values(weight: NDArray[np.float32], bias: float) -> dict[str, float]:
    """Norm and bias of a head, and its scores of the first unit vector and of the one with equal values."""
    w = weight.astype(np.float64)
    uniform = bias + w.sum() / np.sqrt(len(w))
    return dict(zip(KNOWN, (float(np.linalg.norm(w)), bias, bias + float(w[0]), float(uniform)), strict=True))


def _found(weights: str | None) -> Path:
    if weights is None:
        raise PrefloopError(
            f"aesthetics needs the file of its head: fetch {HEAD_URL} and give --checkpoint aesthetics=FILE; "
            "`--checkpoint shapes` takes the built-in world's"
        )
    return files.find("aesthetics", weights, "")


def collapsed(state: dict[str, Any], path: Path) -> tuple[NDArray[np.float32], float]:
    """The head's layers as one: weight (E,) and bias. There is nothing between them, so their product is exact.

    Raises:
        IntegrityError: where the layers do not follow one another, or end in more than one number.
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
    raise IntegrityError(f"{path} is no aesthetics head: its linear layers do not lead to one number")


def _head_in(folder: Path) -> Path:
    names = sorted([*folder.glob("head.*"), *folder.glob("*.pth")])
    if not names:
        raise PrefloopError(f"there is no aesthetics head in {folder}; put head.safetensors or {HEAD} there")
    return names[0]
