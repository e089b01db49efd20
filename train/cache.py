"""Latents and prompt embeddings, computed once and kept in the store's cache/ in memory-mapped files.

The cache is keyed by what made it (weights of the encoder, crop of the image), so runs share it and it is safe to delete.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from uuid import UUID

import torch
from torch import Tensor

from ..core.errors import cannot_write
from ..core.ids import content_id
from ..core.progress import progress
from ..core.signals import StopSignal
from ..store import BadDataError, ImageError, PairStore, load_image
from .crops import Crop, resize_and_crop
from .pairs import Pairs
from .tensor_file import DamagedError, read_about, read_tensors, write_tensors

ENCODE_PIXELS = 16 * 512 * 512  # at once; sixteen images of 1024² would need more memory than training
SHARD = 1024  # rows per file
CROP_COORDINATES = "frame"  # the tensor's name in files of version 0.1, whose latents are still used
EMPTY_PROMPT_ID = content_id(b"empty prompt")
_NAME = re.compile("[0-9a-f]{32}")  # stems of our files; others are left alone
LENGTH = ".length"  # ends the name of the tensor with the lengths of ragged rows
Rows = tuple[list[UUID], Mapping[str, Tensor | list[Tensor]]]


class TensorCache:
    """Rows of tensors by id, in the safetensors files of one folder; finished files never change.

    A file is verified before its first row is read. If it is damaged or has no checksum, it is removed and its rows count as
    missing again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        self._place: dict[UUID, tuple[Path, int]] = {}
        self._open: dict[Path, dict[str, Tensor]] = {}
        """Verified files."""
        self._damaged: list[Path] = []
        for path in sorted(folder.glob("*.safetensors")):
            if _NAME.fullmatch(path.stem):
                self._index(path)

    def _index(self, path: Path) -> None:
        try:
            ids = [UUID(identity) for identity in json.loads(read_about(path)["ids"])]
        except (DamagedError, KeyError, ValueError, TypeError, AttributeError):
            self._damaged.append(path)
        except FileNotFoundError:
            pass  # another run found it damaged and removed it
        else:
            self._place |= {identity: (path, at) for at, identity in enumerate(ids)}

    def missing(self, ids: Iterable[UUID]) -> list[UUID]:
        """The ids that have no row, or whose file is damaged."""
        ids = list(ids)
        for path in {self._place[identity][0] for identity in ids if identity in self._place}:
            self._verify(path)
        if self._damaged:
            n, names = len(self._damaged), {path.name for path in self._damaged}
            self._place = {identity: place for identity, place in self._place.items() if place[0].name not in names}
            for path in self._damaged:
                path.unlink(missing_ok=True)
            self._damaged.clear()
            files = "1 file is" if n == 1 else f"{n} files are"
            print(
                f"{files} damaged, or without a checksum, in {self.folder}; removed, and what is needed of it is computed again",
                file=sys.stderr,
            )
        return [identity for identity in ids if identity not in self._place]

    def _verify(self, path: Path) -> None:
        if path in self._open:
            return
        try:
            self._open[path], _ = read_tensors(path)
        except (DamagedError, FileNotFoundError):
            self._damaged.append(path)

    def add(self, ids: Sequence[UUID], tensors: dict[str, Tensor]) -> None:
        """Write rows as one file."""
        path = self.folder / f"{content_id(''.join(identity.hex for identity in ids).encode()).hex}.safetensors"
        write_tensors(path, tensors, {"ids": json.dumps([str(identity) for identity in ids])})
        self._open[path], _ = read_tensors(path)
        self._index(path)

    def rows(self, name: str, ids: Sequence[UUID]) -> Tensor:
        """The tensor `name` of the ids, stacked in their order; none may be missing."""
        places = [self._place[identity] for identity in ids]
        return torch.stack([self._open[path][name][at] for path, at in places])

    def ragged(self, name: str, ids: Sequence[UUID]) -> list[Tensor]:
        """The tensor `name` of the ids, whose lengths may differ, without padding."""
        rows = []
        for path, at in (self._place[identity] for identity in ids):
            tensors = self._open[path]
            length = tensors[f"{name}{LENGTH}"][at] if f"{name}{LENGTH}" in tensors else None
            rows.append(tensors[name][at] if length is None else tensors[name][at, : int(length)])
        return rows

    def fill(
        self,
        missing: Sequence[UUID],
        rows_of: Callable[[Sequence[UUID]], Rows],
        what: str,
        batch: int,
        stop: StopSignal | None = None,
    ) -> None:
        """Add the missing rows, a batch at a time; `rows_of` may leave out rows that cannot be computed.

        Raises:
            Interrupted: after the batch in which a signal arrived; what was computed is kept.
        """
        if not missing:
            return
        at_once = max(SHARD // batch, 1) * batch  # whole batches, so that a resumed run has the same ones
        with progress(len(missing), what) as bar:
            for start in range(0, len(missing), at_once):
                ids: list[UUID] = []
                parts: list[Mapping[str, Tensor | list[Tensor]]] = []
                shard = missing[start : start + at_once]
                for at in range(0, len(shard), batch):
                    computed, tensors = rows_of(shard[at : at + batch])
                    if computed:
                        ids += computed
                        parts.append(tensors)
                    bar.update(len(shard[at : at + batch]))
                    if stop is not None and stop.requested:
                        break
                if ids:
                    self.add(ids, joined(parts))
                if stop is not None:
                    stop.check(f"{what}: {bar.n} of {len(missing)} are kept")


def joined(parts: Sequence[Mapping[str, Tensor | list[Tensor]]]) -> dict[str, Tensor]:
    """The rows of several batches; ragged ones are padded, with their lengths beside them."""
    tensors: dict[str, Tensor] = {}
    for name in parts[0]:
        rows = [row for part in parts for row in part[name]]
        if all(isinstance(part[name], Tensor) for part in parts):
            tensors[name] = torch.stack(rows)
        else:
            tensors[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            tensors[f"{name}{LENGTH}"] = torch.tensor([len(row) for row in rows])
    return tensors


def encode_batch(height: int, width: int) -> int:
    """How many images of that size are encoded at once."""
    return min(max(ENCODE_PIXELS // (height * width), 1), 64)


def cache_latents(
    store: PairStore,
    pairs: Pairs,
    crops: Mapping[UUID, set[Crop]],
    encode: Callable[[Tensor], tuple[Tensor, Tensor]],
    key: str,
    stop: StopSignal | None = None,
    max_unreadable: float = 0.01,
) -> tuple[TensorCache, Pairs]:
    """Encode the crops of the pairs' images that are not in the cache yet.

    Args:
        crops: of each image.
        encode: from pixels (N, 3, H, W) to mean and standard deviation of their scaled latents, each (N, C, h, w).
        key: hash of the encoder's weights.

    Returns:
        The cache, with mean and std of each crop's scaled latents (C, h, w) and CROP_COORDINATES, (4,): original height and
        width, top and left of the crop; and the pairs whose images could both be read.

    Raises:
        BadDataError: if more than `max_unreadable` of the images cannot be read.
        Interrupted: after a signal.
    """
    cache = TensorCache(store.path / "cache" / f"latents-{key[:16]}")
    paths = pairs.image_paths()
    work = {crop.key(image): (image, crop) for image, used in crops.items() for crop in used}
    unreadable: dict[UUID, str] = {}

    def encoded(ids: Sequence[UUID]) -> Rows:
        pixels, coordinates, readable = [], [], []
        for identity in ids:
            image, crop = work[identity]
            try:
                cropped, crop_coordinates = resize_and_crop(load_image(store.path / paths[image], image), crop)
            except ImageError as error:
                unreadable[image] = error.reason
                continue
            readable.append(identity)
            pixels.append(cropped)
            coordinates.append(crop_coordinates)
        if not readable:
            return [], {}
        with torch.inference_mode():
            mean, std = encode(torch.stack(pixels))
        rows = {"mean": mean.half().cpu(), "std": std.half().cpu(), CROP_COORDINATES: torch.tensor(coordinates)}
        return readable, rows

    missing = cache.missing(sorted(work))
    for size in sorted({work[identity][1].size for identity in missing}):
        alike = [identity for identity in missing if work[identity][1].size == size]
        cache.fill(alike, encoded, "encoding images", encode_batch(*size), stop)
    if not unreadable:
        return cache, pairs
    if len(unreadable) > max_unreadable * len(paths):
        reasons = ", ".join(sorted(set(unreadable.values())))
        raise BadDataError(
            f"{len(unreadable)} of {len(paths)} images cannot be used ({reasons}); `prefloop store check` names them"
        )
    print(f"{len(unreadable)} images cannot be used; their pairs are excluded", file=sys.stderr)
    readable = (
        part.select(at for at, pair in enumerate(part) if not {pair.chosen, pair.rejected} & unreadable.keys())
        for part in (pairs.train, pairs.validation)
    )
    return cache, Pairs(*readable)


def _kept(rows: Tensor | list[Tensor], dtype: torch.dtype) -> Tensor | list[Tensor]:
    return rows.to(dtype).cpu() if isinstance(rows, Tensor) else [row.to(dtype).cpu() for row in rows]


def cache_prompt_embeds(
    store: PairStore,
    pairs: Pairs,
    encode: Callable[[list[str]], Mapping[str, Tensor | list[Tensor]]],
    dtype: torch.dtype,
    key: str,
    stop: StopSignal | None = None,
    empty: str = "",
) -> TensorCache:
    """Encode each distinct prompt once, and the empty one.

    Args:
        encode: from N prompts to tensors by name, each (N, ...), or a list of N (tokens, ...) if ragged.
        dtype: what they are kept in.
        key: hash of the encoders' weights.
        empty: the family's `negative_prompt`.
    """
    cache = TensorCache(store.path / "cache" / f"prompt-embeds-{key[:16]}")
    prompts = {EMPTY_PROMPT_ID: empty} | pairs.prompts()

    def encoded(ids: Sequence[UUID]) -> Rows:
        with torch.inference_mode():
            embeds = encode([prompts[identity] for identity in ids])
        return list(ids), {name: _kept(rows, dtype) for name, rows in embeds.items()}

    cache.fill(cache.missing(sorted(prompts)), encoded, "encoding prompts", 64, stop)
    return cache
