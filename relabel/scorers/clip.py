"""CLIP score: the cosine of the image and prompt embeddings of OpenCLIP ViT-H/14, not tuned on preferences."""

from typing import TYPE_CHECKING, Any

from .openclip import OpenCLIPScorer
from .pixels import center_cropped
from .sources import Source

if TYPE_CHECKING:
    from PIL.Image import Image


class CLIP(OpenCLIPScorer):
    name = "clip"
    official = Source(
        repository="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        files=("open_clip_model.safetensors",),
        n_bytes=3_944_000_000,  # 986 million parameters in float32
    )
    reads = (official,)
    weights_license = "MIT"  # the repository's card, and open_clip's issue 177
    preprocessing = "open_clip default: shortest side, crop, 1"

    def preprocess(self, image: "Image") -> Any:
        return center_cropped(image, self.size, "torchvision")
