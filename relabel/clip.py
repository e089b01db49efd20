"""CLIP score: the cosine of a picture's and a prompt's embedding in OpenCLIP ViT-H/14, which nobody's choices tuned."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .openclip import OpenCLIPScorer

if TYPE_CHECKING:
    from PIL.Image import Image


class CLIP(OpenCLIPScorer):
    name = "clip"
    official = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_model.safetensors"
    preprocessing = "open_clip default: shortest side, crop, 1"

    def preprocess(self, size: int) -> "Callable[[Image], Any]":
        import open_clip

        transform: Any = open_clip.image_transform(size, is_train=False)
        return transform
