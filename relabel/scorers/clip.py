"""CLIP score: the cosine of a picture's and a prompt's embedding in OpenCLIP ViT-H/14, which nobody's choices tuned."""

from typing import TYPE_CHECKING, Any

from .openclip import OpenCLIPScorer
from .pixels import cropped

if TYPE_CHECKING:
    from PIL.Image import Image


class CLIP(OpenCLIPScorer):
    name = "clip"
    official = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_model.safetensors"
    preprocessing = "open_clip default: shortest side, crop, 1"

    def preprocess(self, image: "Image") -> Any:
        return cropped(image, self.size, "torchvision")
