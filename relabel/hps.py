"""HPS v2.1, arXiv 2306.09341: the cosine of an OpenCLIP ViT-H/14 that was tuned on people's rankings."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .openclip import OpenCLIPScorer

if TYPE_CHECKING:
    from PIL.Image import Image


class HPS(OpenCLIPScorer):
    """Unlike CLIP it sees the whole picture: the longest side is fitted and the rest is padded with zeros."""

    name = "hps"
    official = "xswu/HPSv2/HPS_v2.1_compressed.pt"
    preprocessing = "longest side, zero padding, 1"

    def preprocess(self, size: int) -> "Callable[[Image], Any]":
        from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as tv

        def transform(image: "Image") -> Any:
            pixels = tv.to_tensor(image)
            height, width = pixels.shape[1:]
            scale = size / max(height, width)
            if scale != 1.0:
                new = [max(1, round(height * scale)), max(1, round(width * scale))]
                pixels = tv.resize(pixels, new, interpolation=InterpolationMode.BICUBIC, antialias=True)
            down, right = size - pixels.shape[1], size - pixels.shape[2]
            pixels = tv.pad(pixels, [right // 2, down // 2, right - right // 2, down - down // 2])
            return tv.normalize(pixels, list(OPENAI_DATASET_MEAN), list(OPENAI_DATASET_STD))

        return transform
