"""Which crop of an image is trained on: the same for both images of a pair."""

import math
from dataclasses import dataclass
from uuid import UUID

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.ids import canonical, content_id

POSITIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Positions of a random crop along the longer side; few, so that latents can be cached."""
LONGEST = 2.0  # side ratio of the longest bucket


@dataclass(frozen=True)
class Crop:
    """Resize an image until it covers height and width, mirror it if asked, and crop it."""

    height: int
    width: int
    position: float = 0.5
    """0 is the left or upper end, 1 the other."""
    mirrored: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    def key(self, image: UUID) -> UUID:
        """Id of the image's latents in this crop."""
        return content_id(image.bytes + self.key_suffix())

    def key_suffix(self) -> bytes:
        """What follows the image's id in the bytes that `key` is the hash of."""
        return canonical([self.height, self.width, self.position, self.mirrored]).encode()


def resize_and_crop(image: Image.Image, crop: Crop) -> tuple[Tensor, list[int]]:
    """
    Returns:
        Pixels (3, height, width) in [-1, 1]; and the crop coordinates: original height and width, top and left of the crop in
        the resized image, as SDXL's micro-conditioning takes them.
    """
    original = [image.height, image.width]
    scale = max(crop.height / image.height, crop.width / image.width)
    if scale != 1.0:
        size = (max(crop.width, round(image.width * scale)), max(crop.height, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    if crop.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left = round((image.width - crop.width) * (1 - crop.position if crop.mirrored else crop.position))
    top = round((image.height - crop.height) * crop.position)
    image = image.crop((left, top, left + crop.width, top + crop.height))
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1
    return pixels, [*original, top, left]


def bucket(height: float, width: float, resolution: int, multiple: int) -> tuple[int, int]:
    """Height and width with the nearest aspect ratio: multiples of `multiple`, as large as resolution² pixels allow."""
    ratio = min(max(math.log(height / width), -math.log(LONGEST)), math.log(LONGEST))
    shapes = []
    for rows in range(1, int(resolution * math.sqrt(LONGEST)) // multiple + 1):
        columns = resolution * resolution // (rows * multiple) // multiple
        if columns and max(rows, columns) <= LONGEST * min(rows, columns):
            shapes.append((rows * multiple, columns * multiple))
    return min(shapes, key=lambda shape: (abs(math.log(shape[0] / shape[1]) - ratio), -shape[0] * shape[1]))
