"""What HPS and CLIP share: the cosine of an open_clip model's two embeddings."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store.runs import quiet_libraries
from . import weights as files
from .device import device_for

if TYPE_CHECKING:
    from PIL.Image import Image

ARCHITECTURE = "ViT-H-14"


class OpenCLIPScorer:
    """A checkpoint for an architecture of open_clip, or a folder with open_clip_config.json, tokenizer and checkpoint.

    A subclass says name, official weights and how a picture becomes pixels.
    """

    name: str
    official: str
    preprocessing: str
    needs_prompt = True
    temperature = 0.01

    def __init__(self, weights: str | None = None, device: str | None = None) -> None:
        found = files.find(self.name, weights, self.official)
        self.folder = found if found.is_dir() else None
        self.checkpoint = _checkpoint_in(found) if found.is_dir() else found
        self.device = device
        digest = files.checked(self.checkpoint, {})
        self.revision = files.revision(digest, self.preprocessing, "float32")
        self.sources = {"weights": weights or self.official, "sha256": digest}

    def preprocess(self, size: int) -> "Callable[[Image], Any]":
        """From a picture to normalised pixels (3, size, size)."""
        raise NotImplementedError

    @cached_property
    def _parts(self) -> tuple[Any, Any, Any]:
        import open_clip

        from ..store.errors import IntegrityError

        quiet_libraries()
        own = self.folder is not None and (self.folder / "open_clip_config.json").exists()
        architecture = f"local-dir:{self.folder}" if own else ARCHITECTURE
        model: Any = open_clip.create_model(architecture, load_weights=False)
        try:
            model.load_state_dict(files.load_tensors(self.checkpoint), strict=True)
        except RuntimeError as error:
            raise IntegrityError(
                f"{self.checkpoint} does not fit {architecture}: {str(error).splitlines()[-1].strip()}"
            ) from error
        tokenizer = open_clip.get_tokenizer(architecture)
        model = model.float().eval().to(device_for(self.device))
        return model, tokenizer, self.preprocess(_side(model))

    def score(self, prompts: Sequence[str], images: "Sequence[Image]") -> Any:
        """float32 (B,), in -1..1; each distinct prompt is embedded once."""
        import torch

        model, tokenizer, preprocess = self._parts
        device = next(model.parameters()).device
        distinct = list(dict.fromkeys(prompts))
        rows = [distinct.index(prompt) for prompt in prompts]
        with torch.inference_mode():
            pixels = torch.stack([preprocess(image) for image in images]).to(device)
            image = model.encode_image(pixels, normalize=True).float()
            text = model.encode_text(tokenizer(distinct).to(device), normalize=True).float()[rows]
            return (image * text).sum(-1).cpu().numpy()


def _side(model: Any) -> int:
    size = model.visual.image_size
    return size[0] if isinstance(size, tuple | list) else size


def _checkpoint_in(folder: Path) -> Path:
    names = sorted([*folder.glob("*.safetensors"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    return names[0] if names else folder / "open_clip_model.safetensors"
