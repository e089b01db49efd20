"""What HPS and CLIP share: the cosine of an open_clip model's two embeddings."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store.device import best_device
from ..store.errors import IntegrityError
from ..store.runs import quiet_libraries
from . import weights as files
from .precision import torch_dtype
from .towers import Embedding, Embeddings, cosines, n_longer, normalised

if TYPE_CHECKING:
    from PIL.Image import Image

ARCHITECTURE = "ViT-H-14"
SIZE = 224


class OpenCLIPScorer(Embedding):
    """A checkpoint for an architecture of open_clip, or a folder with open_clip_config.json, tokenizer and checkpoint.

    A subclass says name, official weights and how a picture becomes pixels.
    """

    name: str
    official: str
    preprocessing: str
    needs_prompt = True
    temperature = 0.01

    def __init__(self, weights: str | None = None, device: str | None = None, dtype: str = "float32") -> None:
        found = files.find(self.name, weights, self.official)
        self.folder = found if found.is_dir() else None
        self.checkpoint = _checkpoint_in(found) if found.is_dir() else found
        self.device, self.dtype = device, dtype
        digest = files.checked(self.checkpoint, {})
        self.backbone = self.revision = files.revision(digest, self.preprocessing, dtype)
        self.files = [self.checkpoint]
        self.sources = {"weights": weights or self.official, "sha256": digest}

    def preprocess(self, image: "Image") -> Any:
        raise NotImplementedError

    @cached_property
    def size(self) -> int:
        own = self._own_config
        return SIZE if own is None else files.setting(own, "model_cfg", "vision_cfg", "image_size", default=SIZE)

    @property
    def _own_config(self) -> Path | None:
        path = self.folder / "open_clip_config.json" if self.folder else None
        return path if path and path.exists() else None

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        import open_clip

        quiet_libraries()
        architecture = f"local-dir:{self.folder}" if self._own_config else ARCHITECTURE
        state = files.load_tensors(self.checkpoint)  # before the model is made: a bad file is found at once
        try:
            model: Any = open_clip.create_model(architecture, load_weights=False)
            tokenizer = open_clip.get_tokenizer(architecture)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
            raise IntegrityError(f"{self.folder} holds no open_clip model: {str(error).splitlines()[0]}") from error
        try:
            model.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise IntegrityError(
                f"{self.checkpoint} does not fit {architecture}: {str(error).splitlines()[-1].strip()[:200]}"
            ) from error
        return model.eval().to(best_device(self.device), torch_dtype(self.dtype)), tokenizer

    def embed_images(self, pixels: Sequence[Any]) -> Embeddings:
        import torch

        model, _ = self._parts
        own = next(model.parameters())
        with torch.inference_mode():
            return normalised(model.encode_image(torch.stack(list(pixels)).to(own.device, own.dtype)))

    def embed_prompts(self, prompts: Sequence[str]) -> Embeddings:
        import torch

        model, tokenizer = self._parts
        with torch.inference_mode():
            return normalised(model.encode_text(tokenizer(list(prompts)).to(next(model.parameters()).device)))

    def n_truncated(self, prompts: Sequence[str]) -> int:
        _, tokenizer = self._parts
        if hasattr(tokenizer, "tokenizer"):  # open_clip's wrapper of one of transformers'
            return n_longer(tokenizer.tokenizer, prompts, tokenizer.context_length)
        return sum(len(tokenizer.encode(prompt)) + 2 > tokenizer.context_length for prompt in prompts)  # with its ends

    def score_embeddings(self, images: Embeddings, prompts: Embeddings | None) -> Any:
        """In -1..1."""
        assert prompts is not None
        return cosines(images, prompts).astype(np.float32)


def _checkpoint_in(folder: Path) -> Path:
    names = sorted([*folder.glob("*.safetensors"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    return names[0] if names else folder / "open_clip_model.safetensors"
