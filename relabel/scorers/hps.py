"""HPS v2, arXiv 2306.09341: the cosine of an OpenCLIP ViT-H/14 that was tuned on people's rankings."""

from typing import TYPE_CHECKING, Any

from .openclip import OpenCLIPScorer
from .pixels import padded
from .sources import Source

if TYPE_CHECKING:
    from PIL.Image import Image


class HPS(OpenCLIPScorer):
    """Version 2.1. Unlike CLIP it sees the whole image: the longest side is resized to fit, the border is black."""

    name = "hps"
    # sizes and sha256: the hub's commit 697403c, which added both files; license: the repository's card
    official = Source(
        repository="xswu/HPSv2",
        files=("HPS_v2.1_compressed.pt",),
        n_bytes=1_972_490_005,
        sha256={"HPS_v2.1_compressed.pt": "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837"},
    )
    reads = (official,)
    weights_license = "Apache-2.0"
    preprocessing = "longest side, zero padding, 1"

    def preprocess(self, image: "Image") -> Any:
        return padded(image, self.size)


class HPSv2(HPS):
    """Version 2.0; its scores cannot be compared with those of 2.1."""

    name = "hpsv2"
    official = Source(
        repository="xswu/HPSv2",
        files=("HPS_v2_compressed.pt",),
        n_bytes=1_972_484_501,
        sha256={"HPS_v2_compressed.pt": "07cb0d20626232204ca3a6ec53ff5984e7e53212a8a7b0e0ec2bac1bdaf125a1"},
    )
    reads = (official,)
