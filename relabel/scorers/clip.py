"""CLIP score: the cosine of the image and prompt embeddings of OpenCLIP ViT-H/14, not tuned on preferences."""

from typing import TYPE_CHECKING, Any

from .openclip import OpenCLIPScorer
from .pixels import center_cropped

if TYPE_CHECKING:
    from PIL.Image import Image


class CLIP(OpenCLIPScorer):
    name = "clip"
    official = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_model.safetensors"
    reads = (official,)
    preprocessing = "open_clip default: shortest side, crop, 1"

    def preprocess(self, image: "Image") -> Any:
        return center_cropped(image, self.size, "torchvision")
