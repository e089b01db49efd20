"""What Qwen2-VL reads: an image as normalized patches, and text as tokens of a vocabulary file."""

import json
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import IntegrityError, PrefloopError
from . import checkpoints as files
from .pixels import MEAN, STD
from .settings import read_json
from .vocabulary import byte_pair

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_RATIO = 200
"""Longest side divided by shortest, above which Qwen2-VL's preprocessing refuses an image."""
# letters with one sign before them, single digits, punctuation, line breaks, spaces: the pieces that pairs are merged in
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def resized_size(width: int, height: int, factor: int, pixels: int) -> tuple[int, int] | None:
    """Width and height in multiples of `factor`, near `pixels` in all, with nearly the same aspect; None if the image or
    the result is more than 200 times as long as wide.

    As the smart_resize of qwen-vl-utils with equal lower and upper bounds: sizes round up if the image is too small and
    down if it is too large, so a result has a little more or less than `pixels`.
    """
    new = [max(factor, round(side / factor) * factor) for side in (width, height)]
    if math.prod(new) > pixels:
        # this order of operations: at 512 x 512 another one gives 447.99…, and 420 instead of 448
        shrink = math.sqrt((height * width) / pixels)
        new = [math.floor(side / shrink / factor) * factor for side in (width, height)]
    elif math.prod(new) < pixels:
        grow = math.sqrt(pixels / (height * width))
        new = [math.ceil(side * grow / factor) * factor for side in (width, height)]
    if max(width, height) > MAX_RATIO * min(width, height) or max(new) > MAX_RATIO * min(new):
        return None
    return new[0], new[1]


def patches(image: "Image", size: tuple[int, int], patch: int, merge: int, frames: int) -> tuple[Any, tuple[int, int]]:
    """An RGB image, resized bicubically on its 8 bits, as float32 (N, 3 * frames * patch * patch).

    The patches of each merge x merge block follow one another, since the model merges them into one token. An image is
    `frames` equal frames.

    Returns:
        patches, and their rows and columns in the image.
    """
    import numpy as np
    import torch
    from PIL.Image import Resampling

    resized = image.convert("RGB").resize(size, Resampling.BICUBIC)
    values = torch.from_numpy(np.asarray(resized, dtype=np.float32) / np.float32(255))
    values = ((values - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)
    rows, columns = size[1] // patch, size[0] // patch
    grid = values.reshape(3, rows // merge, merge, patch, columns // merge, merge, patch)
    grid = grid.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5).expand(-1, -1, -1, -1, -1, frames, -1, -1)
    return grid.reshape(rows * columns, -1), (rows, columns)


@dataclass(frozen=True)
class QwenVocabulary:
    """The byte-level pairs and the special tokens of a tokenizer.json; nothing else in the file is read."""

    path: Path
    tokens: dict[str, int]
    merges: list[tuple[str, str]]
    added: dict[str, int]
    """Special tokens."""

    @property
    def digest(self) -> str:
        return files.revision(json.dumps([sorted(self.tokens.items()), self.merges, sorted(self.added.items())]))

    @property
    def next_id(self) -> int:
        """The number that a further token gets."""
        return 1 + max(max(numbers.values()) for numbers in (self.tokens, self.added))

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
        from tokenizers.models import BPE

        try:
            tokenizer: Any = Tokenizer(BPE(vocab=self.tokens, merges=self.merges))
        except Exception as error:  # tokenizers raises nothing narrower
            raise _unreadable(self.path) from error
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        return tokenizer

    @cached_property
    def encode(self) -> Any:
        """From plain text to its tokens; the text of a special token is plain text too."""
        tokenizer = self._tokenizer

        @lru_cache(maxsize=256)  # the template's parts, and the prompt of several images
        def encode(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text).ids)

        return encode


def read_qwen_vocabulary(path: Path, needed: tuple[str, ...]) -> QwenVocabulary:
    """
    Args:
        path: a tokenizer.json.
        needed: special tokens that it must have.

    Raises:
        IntegrityError: if it is not Qwen's.
    """
    try:
        content = read_json(path)
        model = content["model"]
        pairs = [byte_pair(merge) for merge in model["merges"]]
        added = {token["content"]: token["id"] for token in content["added_tokens"]}
        numbers = [*model["vocab"].values(), *added.values()]
        if model["type"] != "BPE" or not model["vocab"] or not all(type(number) is int for number in numbers):
            raise ValueError
        if not added.keys() >= set(needed) or min(numbers) < 0:
            raise ValueError
    except (PrefloopError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unreadable(path) from error
    return QwenVocabulary(path, dict(model["vocab"]), pairs, added)


def _unreadable(path: Path) -> IntegrityError:
    return IntegrityError(
        f"{path} is not the tokenizer of a Qwen2-VL; put the tokenizer.json of Qwen/Qwen2-VL-7B-Instruct there"
    )
