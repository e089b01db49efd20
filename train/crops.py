"""What part of an image is trained on: its frame, the same for both images of a pair."""

import math
from dataclasses import dataclass
from uuid import UUID

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.ids import canonical, content_id

CROPS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Places of a random crop along the longer side; few, so that latents can be kept."""
LONGEST = 2.0  # side ratio of the longest bucket


@dataclass(frozen=True)
class Frame:
    """Scale an image until it covers height and width, cut it there, mirror it."""

    height: int
    width: int
    place: float = 0.5
    """Of the cut: 0 is the left or upper end, 1 the other."""
    mirrored: bool = False

    def key(self, image: UUID) -> UUID:
        """Of the image's latents in this frame."""
        return content_id(image.bytes + canonical([self.height, self.width, self.place, self.mirrored]).encode())


def cut(image: Image.Image, frame: Frame) -> tuple[Tensor, list[int]]:
    """The image in its frame.

    Returns:
        Pixels (3, height, width) in [-1, 1]; and the original height and width, top and left of the cut in the scaled image,
        as SDXL is told them.
    """
    original = [image.height, image.width]
    scale = max(frame.height / image.height, frame.width / image.width)
    if scale != 1.0:
        size = (max(frame.width, round(image.width * scale)), max(frame.height, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    if frame.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left = round((image.width - frame.width) * (1 - frame.place if frame.mirrored else frame.place))
    top = round((image.height - frame.height) * frame.place)
    image = image.crop((left, top, left + frame.width, top + frame.height))
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1
    return pixels, [*original, top, left]


def bucket(height: float, width: float, resolution: int, step: int) -> tuple[int, int]:
    """Height and width of the frame whose ratio is nearest: multiples of `step`, as large as resolution² pixels allow."""
    wanted = min(max(math.log(height / width), -math.log(LONGEST)), math.log(LONGEST))
    shapes = []
    for rows in range(1, int(resolution * math.sqrt(LONGEST)) // step + 1):
        columns = resolution * resolution // (rows * step) // step
        if columns and max(rows, columns) <= LONGEST * min(rows, columns):
            shapes.append((rows * step, columns * step))
    return min(shapes, key=lambda shape: (abs(math.log(shape[0] / shape[1]) - wanted), -shape[0] * shape[1]))
