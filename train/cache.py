"""Latents and text embeddings, computed once and kept in the store's cache/ in files that are memory-mapped.

The cache is keyed by what made it (weights of the encoder, frame of the image), so runs share it and it is safe to delete.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import torch
from torch import Tensor

from ..core.errors import cannot_write
from ..core.ids import content_id
from ..core.progress import progress
from ..core.signals import StopSignal
from ..store import BadDataError, ImageError, PairStore, load_image
from .crops import Frame, cut
from .pairs import Pairs
from .tensor_file import DamagedError, read_about, read_tensors, write_tensors

ENCODE_PIXELS = 16 * 512 * 512  # at once; sixteen pictures of 1024² at once would need more memory than training
SHARD = 1024  # rows a file
EMPTY_PROMPT_ID = content_id(b"empty prompt")
_NAME = re.compile("[0-9a-f]{32}")  # of our files; others are left alone
Rows = tuple[list[UUID], dict[str, Tensor]]


class TensorCache:
    """Rows of tensors by id, in safetensors files of one folder; finished files are never changed.

    A file is verified before its first row is taken. One that is damaged, or has no checksum, is removed, and its rows are
    missing again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        self._where: dict[UUID, tuple[Path, int]] = {}
        self._open: dict[Path, dict[str, Tensor]] = {}
        """Files that were verified."""
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
            pass  # another run has found it damaged
        else:
            self._where |= {identity: (path, at) for at, identity in enumerate(ids)}

    def missing(self, wanted: Iterable[UUID]) -> list[UUID]:
        """Those of the ids that have no row, or whose file is damaged."""
        wanted = list(wanted)
        for path in {self._where[identity][0] for identity in wanted if identity in self._where}:
            self._verify(path)
        if self._damaged:
            n, names = len(self._damaged), {path.name for path in self._damaged}
            self._where = {one: place for one, place in self._where.items() if place[0].name not in names}
            for path in self._damaged:
                path.unlink(missing_ok=True)
            self._damaged.clear()
            files = "1 file is" if n == 1 else f"{n} files are"
            print(f"{files} damaged, or without a checksum, in {self.folder}; made again where needed", file=sys.stderr)
        return [identity for identity in wanted if identity not in self._where]

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
        """The tensor `name` of those ids, stacked in their order; none of them may be missing."""
        places = [self._where[identity] for identity in ids]
        return torch.stack([self._open[path][name][at] for path, at in places])

    def fill(
        self,
        missing: Sequence[UUID],
        rows_of: Callable[[Sequence[UUID]], Rows],
        what: str,
        batch: int,
        stop: StopSignal | None = None,
    ) -> None:
        """Add the missing rows, a batch at a time; `rows_of` gives those of a batch that there are.

        Raises:
            Interrupted: after the batch in which a signal came; what was computed is kept.
        """
        if not missing:
            return
        at_once = max(SHARD // batch, 1) * batch  # whole batches, so that a run that goes on has the same ones
        with progress(len(missing), what) as bar:
            for start in range(0, len(missing), at_once):
                ids: list[UUID] = []
                parts: list[dict[str, Tensor]] = []
                shard = missing[start : start + at_once]
                for at in range(0, len(shard), batch):
                    good, tensors = rows_of(shard[at : at + batch])
                    if good:
                        ids += good
                        parts.append(tensors)
                    bar.update(len(shard[at : at + batch]))
                    if stop is not None and stop.requested:
                        break
                if ids:
                    self.add(ids, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})
                if stop is not None:
                    stop.check(f"{what}: {bar.n} of {len(missing)} are kept")


def encode_batch(height: int, width: int) -> int:
    """How many images of that size are encoded at once."""
    return min(max(ENCODE_PIXELS // (height * width), 1), 64)


def cache_latents(
    store: PairStore,
    pairs: Pairs,
    frames: Mapping[UUID, set[Frame]],
    vae: Any,
    key: str,
    stop: StopSignal | None = None,
    max_bad: float = 0.01,
) -> tuple[TensorCache, Pairs]:
    """Encode the images of the pairs, in their frames, that are not in the cache yet.

    Args:
        frames: of each image.
        key: of the encoder's weights.

    Returns:
        The cache, with mean and std of each image's scaled latents (C, h, w) and `frame`, (4,): original height and width, top
        and left of the cut; and the pairs both of whose images could be read.

    Raises:
        BadDataError: where more than `max_bad` of the images cannot be read.
        Interrupted: where a signal has come.
    """
    shards = TensorCache(store.path / "cache" / f"latents-{key[:16]}")
    paths = pairs.image_paths()
    work = {frame.key(image): (image, frame) for image, asked in frames.items() for frame in asked}
    bad: dict[UUID, str] = {}
    scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0

    def encoded(ids: Sequence[UUID]) -> Rows:
        pixels, seen, good = [], [], []
        for identity in ids:
            image, frame = work[identity]
            try:
                framed, where = cut(load_image(store.path / paths[image], image), frame)
            except ImageError as error:
                bad[image] = error.reason
                continue
            good.append(identity)
            pixels.append(framed)
            seen.append(where)
        if not good:
            return [], {}
        with torch.inference_mode():
            posterior = vae.encode(torch.stack(pixels).to(vae.device, vae.dtype)).latent_dist
        mean, std = (posterior.mean - shift) * scale, posterior.std * scale
        return good, {"mean": mean.half().cpu(), "std": std.half().cpu(), "frame": torch.tensor(seen)}

    missing = shards.missing(sorted(work))
    for shape in sorted({(work[key][1].height, work[key][1].width) for key in missing}):
        alike = [key for key in missing if (work[key][1].height, work[key][1].width) == shape]
        shards.fill(alike, encoded, "encoding images", encode_batch(*shape), stop)
    if not bad:
        return shards, pairs
    if len(bad) > max_bad * len(paths):
        reasons = ", ".join(sorted(set(bad.values())))
        raise BadDataError(
            f"{len(bad)} of {len(paths)} images cannot be used ({reasons}); `prefloop store check` names them"
        )
    print(f"{len(bad)} images cannot be used and their pairs are left out", file=sys.stderr)
    kept = (
        part.select(at for at, pair in enumerate(part) if not {pair.chosen, pair.rejected} & bad.keys())
        for part in (pairs.train, pairs.validation)
    )
    return shards, Pairs(*kept)


def cache_texts(
    store: PairStore,
    pairs: Pairs,
    encode: Callable[[list[str]], dict[str, Tensor]],
    key: str,
    stop: StopSignal | None = None,
) -> TensorCache:
    """Encode each distinct prompt once, and the empty one.

    Args:
        encode: from N prompts to `hidden` (N, tokens, width), for SDXL with `pooled` (N, width) too.
        key: of the encoders' weights.
    """
    shards = TensorCache(store.path / "cache" / f"texts-{key[:16]}")
    texts = {EMPTY_PROMPT_ID: ""} | pairs.prompts()

    def encoded(ids: Sequence[UUID]) -> Rows:
        with torch.inference_mode():
            found = encode([texts[identity] for identity in ids])
        return list(ids), {name: tensor.half().cpu() for name, tensor in found.items()}

    shards.fill(shards.missing(sorted(texts)), encoded, "encoding prompts", 64, stop)
    return shards
