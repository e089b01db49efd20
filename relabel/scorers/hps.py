"""HPS v2, arXiv 2306.09341: the cosine of an OpenCLIP ViT-H/14 that was tuned on people's rankings."""

from typing import TYPE_CHECKING, Any

from .openclip import OpenCLIPScorer
from .pixels import padded

if TYPE_CHECKING:
    from PIL.Image import Image


class HPS(OpenCLIPScorer):
    """Version 2.1. Unlike CLIP it sees the whole image: the longest side is resized to fit, the border is black."""

    name = "hps"
    official = "xswu/HPSv2/HPS_v2.1_compressed.pt"
    reads = (official,)
    preprocessing = "longest side, zero padding, 1"

    def preprocess(self, image: "Image") -> Any:
        return padded(image, self.size)


class HPSv2(HPS):
    """Version 2.0; its scores cannot be compared with those of 2.1."""

    name = "hpsv2"
    official = "xswu/HPSv2/HPS_v2_compressed.pt"
    reads = (official,)
