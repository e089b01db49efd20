"""Latents and text embeddings, computed once and kept in the store's cache/ in files that are memory-mapped.

The cache is keyed by what made it (weights, resolution, mirrored or not), so runs share it and it is safe to delete.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..store import BadDataError, ImageError, PairStore, load_image
from ..store.ids import canonical, content_id
from ..store.runs import progress
from .config import TrainConfig
from .pairs import Pair, Pairs

if TYPE_CHECKING:
    from PIL.Image import Image

ENCODE_BATCH = 16
SHARD = 1024  # rows a file


class Shards:
    """Rows of tensors by id, in safetensors files of one folder; finished files are never changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._where: dict[UUID, tuple[Path, int]] = {}
        self._open: dict[Path, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._index(path)

    def _index(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            ids = json.loads(file.metadata()["ids"])
        self._where |= {UUID(identity): (path, at) for at, identity in enumerate(ids)}

    def missing(self, wanted: Iterable[UUID]) -> list[UUID]:
        return [identity for identity in wanted if identity not in self._where]

    def add(self, ids: Sequence[UUID], tensors: dict[str, Tensor]) -> None:
        """Write rows as one file under a temporary name, then rename it."""
        name = content_id("".join(identity.hex for identity in ids).encode()).hex
        path, temporary = self.folder / f"{name}.safetensors", self.folder / f".{name}.{os.getpid()}.tmp"
        save_file(
            {key: value.contiguous() for key, value in tensors.items()},
            temporary,
            {"ids": json.dumps([str(i) for i in ids])},
        )
        os.replace(temporary, path)
        self._index(path)

    def rows(self, name: str, ids: Sequence[UUID]) -> Tensor:
        """The tensor `name` of those ids, stacked in their order."""
        rows = []
        for identity in ids:
            path, at = self._where[identity]
            if path not in self._open:
                self._open[path] = safe_open(path, "pt")
            rows.append(self._open[path].get_slice(name)[at])
        return torch.stack(rows)


@dataclass(frozen=True)
class Batch:
    """B pairs with everything that is drawn for them, on the CPU, float32."""

    pairs: list[Pair]
    chosen: Tensor  # (B, C, h, w), scaled latents
    rejected: Tensor  # (B, C, h, w)
    hidden: Tensor  # (B, tokens, width)
    timesteps: Tensor  # (B,)
    noise: Tensor  # (B, C, h, w), the target of both images
    input_noise: Tensor | None  # (B, C, h, w), what is mixed in instead, where the input is perturbed


@dataclass(frozen=True)
class TrainingData:
    """Cached pairs in an endless, shuffled sequence.

    What is drawn for a pair follows from the seed and the pair's position in the sequence alone: not from batch size,
    accumulation, number of processes, or where a run was interrupted.
    """

    pairs: Pairs
    latents: Shards
    texts: Shards
    config: TrainConfig
    n_timesteps: int

    def order(self, epoch: int) -> list[int]:
        """The training list of an epoch: a permutation that depends on seed and epoch."""
        generator = torch.Generator().manual_seed(derived_seed(self.config.seed, "order", epoch))
        return torch.randperm(len(self.pairs.train), generator=generator).tolist()

    def batch(self, first: int, count: int) -> Batch:
        """Pairs number first to first + count of the sequence."""
        n = len(self.pairs.train)
        orders = {epoch: self.order(epoch) for epoch in range(first // n, (first + count - 1) // n + 1)}
        pairs = [self.pairs.train[orders[at // n][at % n]] for at in range(first, first + count)]
        seeds = [derived_seed(self.config.seed, "pair", at) for at in range(first, first + count)]
        return self._drawn(pairs, seeds, None)

    def validation(self, count: int) -> Iterator[Batch]:
        """The validation pairs in batches of up to `count`, each always at the same timestep and with the same noise."""
        held = self.pairs.validation
        for at in range(0, len(held), count):
            pairs = held[at : at + count]
            seeds = [derived_seed(self.config.seed, "validation", pair.pair_id) for pair in pairs]
            # evenly over the schedule, so that few pairs suffice
            timesteps = [int((at + k + 0.5) / len(held) * self.n_timesteps) for k in range(len(pairs))]
            yield self._drawn(pairs, seeds, timesteps)

    def _drawn(self, pairs: list[Pair], seeds: list[int], fixed_timesteps: list[int] | None) -> Batch:
        config, training = self.config, fixed_timesteps is None
        texts, keys_chosen, keys_rejected, timesteps, generators = [], [], [], [], []
        for at, (pair, seed) in enumerate(zip(pairs, seeds, strict=True)):
            generator = torch.Generator().manual_seed(seed)
            flip, drop = torch.rand(2, generator=generator).tolist()
            timestep = int(torch.randint(self.n_timesteps, (), generator=generator))
            # one flip for both images: a pair must differ only by what was preferred
            flipped = training and config.random_flip and flip < 0.5
            keys_chosen.append(mirrored(pair.chosen) if flipped else pair.chosen)
            keys_rejected.append(mirrored(pair.rejected) if flipped else pair.rejected)
            texts.append(EMPTY if training and drop < config.proportion_empty_prompts else pair.prompt_id)
            timesteps.append(timestep if fixed_timesteps is None else fixed_timesteps[at])
            generators.append(generator)
        chosen, chosen_std = (self.latents.rows(name, keys_chosen).float() for name in ("mean", "std"))
        rejected, rejected_std = (self.latents.rows(name, keys_rejected).float() for name in ("mean", "std"))
        # five draws for each pair: two samples of the encoder, the noise, its offset, its perturbation
        drawn = torch.stack([torch.randn((5, *chosen.shape[1:]), generator=generator) for generator in generators])
        noise = drawn[:, 2] + config.noise_offset * drawn[:, 3, :, :1, :1]
        perturbed = noise + config.input_perturbation * drawn[:, 4] if config.input_perturbation else None
        return Batch(
            pairs,
            chosen + chosen_std * drawn[:, 0],
            rejected + rejected_std * drawn[:, 1],
            self.texts.rows("hidden", texts).float(),
            torch.tensor(timesteps),
            noise,
            perturbed,
        )


EMPTY = content_id(b"empty prompt")


def mirrored(image: UUID) -> UUID:
    """The key of an image's mirrored latents."""
    return UUID(int=image.int ^ 1)


def derived_seed(*parts: object) -> int:
    """A seed that follows from its parts alone, below 2**63."""
    return content_id(canonical([str(part) for part in parts]).encode()).int >> 65


def cache_latents(
    store: PairStore, pairs: Pairs, vae: Any, key: str, resolution: int, *, flip: bool, max_bad: float = 0.01
) -> tuple[Shards, Pairs]:
    """Encode the images of the pairs that are not in the cache yet.

    Args:
        key: of the encoder's weights.

    Returns:
        The cache, and the pairs both of whose images could be read.

    Raises:
        BadDataError: where more than `max_bad` of the images cannot be read.
    """
    shards = Shards(store.path / "cache" / f"latents-{key[:16]}-{resolution}{'-flip' if flip else ''}")
    paths = pairs.image_paths()
    missing = shards.missing(sorted(paths))
    bad: dict[UUID, str] = {}
    scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0

    def encoded(ids: list[UUID]) -> tuple[list[UUID], dict[str, Tensor]]:
        images, good = [], []
        for identity in ids:
            try:
                image = load_image(store.path / paths[identity], identity)
            except ImageError as error:
                bad[identity] = error.reason
                continue
            good.append(identity)
            images.append(to_pixels(image, resolution))
        if not good:
            return [], {}
        pixels = torch.stack(images)
        if flip:
            pixels, good = torch.cat([pixels, pixels.flip(-1)]), good + [mirrored(identity) for identity in good]
        with torch.inference_mode():
            posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        mean, std = (posterior.mean - shift) * scale, posterior.std * scale
        return good, {"mean": mean.half().cpu(), "std": std.half().cpu()}

    _fill(shards, missing, encoded, "latents")
    if bad:
        if len(bad) > max_bad * len(paths):
            reasons = ", ".join(sorted(set(bad.values())))
            raise BadDataError(
                f"{len(bad)} of {len(paths)} images cannot be used ({reasons}); `prefloop store check` names them"
            )
        print(f"{len(bad)} images cannot be used and their pairs are left out", file=sys.stderr)
        kept = [
            [p for p in part if p.chosen not in bad and p.rejected not in bad]
            for part in (pairs.train, pairs.validation)
        ]
        pairs = Pairs(*kept)
    return shards, pairs


def cache_texts(store: PairStore, pairs: Pairs, encode: Callable[[list[str]], Tensor], key: str) -> Shards:
    """Encode each distinct prompt once, and the empty one.

    Args:
        encode: from prompts to (N, tokens, width).
        key: of the encoder's weights.
    """
    shards = Shards(store.path / "cache" / f"texts-{key[:16]}")
    texts = {EMPTY: ""} | pairs.prompts()

    def encoded(ids: list[UUID]) -> tuple[list[UUID], dict[str, Tensor]]:
        with torch.inference_mode():
            return ids, {"hidden": encode([texts[identity] for identity in ids]).half().cpu()}

    _fill(shards, shards.missing(sorted(texts)), encoded, "texts")
    return shards


def _fill(
    shards: Shards,
    missing: list[UUID],
    encoded: Callable[[list[UUID]], tuple[list[UUID], dict[str, Tensor]]],
    what: str,
) -> None:
    if not missing:
        return
    with progress(len(missing), f"encoding {what}") as bar:
        for start in range(0, len(missing), SHARD):
            ids: list[UUID] = []
            parts: list[dict[str, Tensor]] = []
            shard = missing[start : start + SHARD]
            for at in range(0, len(shard), ENCODE_BATCH):
                good, tensors = encoded(shard[at : at + ENCODE_BATCH])
                if good:
                    ids += good
                    parts.append(tensors)
                bar.update(len(shard[at : at + ENCODE_BATCH]))
            if ids:
                shards.add(ids, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def to_pixels(image: "Image", resolution: int) -> Tensor:
    """Scaled by the shorter side and cut in the middle: (3, resolution, resolution) in [-1, 1]."""
    from PIL import Image as Pillow

    width, height = image.size
    scale = resolution / min(width, height)
    if scale != 1.0:
        size = (max(resolution, round(width * scale)), max(resolution, round(height * scale)))
        image = image.resize(size, Pillow.Resampling.LANCZOS)
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    image = image.crop((left, top, left + resolution, top + resolution))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1
