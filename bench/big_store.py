"""A store of any number of pairs, made quickly: journal parts of random rows, as an import and two scorers would write them.

N pairs have 2N images (the first few thousand are real files), N/17 prompts as in Pick-a-Pic, 2N generations by four models,
4N scores by two scorers, and 2N labels: the first scorer's, and a person's who agrees four times in five.
Ids follow from content, except those of images without a file, which are random.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from ..core.ids import canonical, content_bytes, split_of
from ..store import PairStore
from ..store.images import png_bytes
from ..store.journal import TABLES

PAIRS_PER_PART = 16_384  # many parts, as an import with images writes them
PAIRS_PER_PROMPT = 17
N_FILES = 4000
SCORERS = ("pickscore@bench", "hps@bench")
PERSON = "human:bench"
TEMPERATURE = 0.1  # difference of the first scorer's scores that makes one logit
_MODELS = ("sd15", "sd21", "sdxl", "dreamlike")
_RUN = uuid5(UUID(int=0), "bench").bytes
_WORDS = (
    "red",
    "blue",
    "old",
    "small",
    "stone",
    "paper",
    "glass",
    "cat",
    "ship",
    "tower",
    "garden",
    "moon",
    "river",
    "hat",
)
_CATEGORIES = ("animals", "places", "people", "things")

Ids = NDArray[np.uint8]  # (n, 16)


@dataclass(frozen=True)
class _Pairs:
    """The pairs of one part, with image_a < image_b."""

    prompt: Ids
    a: Ids
    b: Ids
    pair: Ids
    score_a: NDArray[np.float32]  # (scorers, n)
    score_b: NDArray[np.float32]


def fill(
    store: PairStore, n_pairs: int, seed: int = 0, n_files: int = N_FILES, scorers: tuple[str, str] = SCORERS
) -> None:
    """Append the journal parts, without ingesting them."""
    _append_names(store, scorers)
    for part, first in enumerate(range(0, n_pairs, PAIRS_PER_PART)):
        n = min(PAIRS_PER_PART, n_pairs - first)
        generator = np.random.default_rng((seed, part))
        images = generator.integers(0, 256, (2 * n, 16), dtype=np.uint8)
        n_real = max(0, min(2 * n, n_files - 2 * first))
        sizes = generator.integers(40_000, 400_000, 2 * n)
        for number in range(n_real):
            images[number], sizes[number] = _write_image(store, 2 * first + number)
        _append(store, _pairs(store, first, images, generator), images, sizes, generator, scorers)


def _append_names(store: PairStore, scorers: tuple[str, str]) -> None:
    models = [{"model_id": _model(name), "name": name, "config": canonical({"imported": True})} for name in _MODELS]
    store.append("models", models)
    store.append("scorers", [{"scorer": name, "name": name.split("@")[0], "config": "{}"} for name in scorers])
    rule = canonical({"rule": "single", "scorers": [scorers[0]], "tie_band": 0.0})
    labelers = [(scorers[0].split("@")[0], "ai", rule), (PERSON, "human", "{}")]
    store.append("labelers", [{"labeler": name, "kind": kind, "config": config} for name, kind, config in labelers])


def _write_image(store: PairStore, number: int) -> tuple[Ids, int]:
    color = (number % 256, number // 256 % 256, number // 65536)
    data = png_bytes(Image.new("RGB", (8, 8), color))
    image_id = content_bytes(data)
    path = store.image_path(UUID(bytes=image_id))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return np.frombuffer(image_id, np.uint8), len(data)


def _pairs(store: PairStore, first: int, images: Ids, generator: np.random.Generator) -> _Pairs:
    n = len(images) // 2
    numbers = np.arange(first, first + n) // PAIRS_PER_PROMPT
    texts = {int(number): _prompt(int(number)) for number in np.unique(numbers)}
    ids = {number: content_bytes(text.encode()) for number, text in texts.items()}
    store.append(
        "prompts",
        [
            {
                "prompt_id": ids[number],
                "prompt": text,
                "split": split_of(UUID(bytes=ids[number])),
                "tags": canonical({"category": _CATEGORIES[number % len(_CATEGORIES)]}),
            }
            for number, text in texts.items()
        ],
    )
    prompt = np.frombuffer(b"".join(ids[number] for number in numbers.tolist()), np.uint8).reshape(n, 16)
    first_images, second_images = images[:n], images[n:]
    left, right = (np.ascontiguousarray(ids).view(">u8") for ids in (first_images, second_images))
    swapped = ((right[:, 0] < left[:, 0]) | ((right[:, 0] == left[:, 0]) & (right[:, 1] < left[:, 1])))[:, None]
    a, b = np.where(swapped, second_images, first_images), np.where(swapped, first_images, second_images)
    pair = _content_ids(prompt, a, b)
    # a part that both scorers share, and a part of each scorer's own
    common = generator.normal(size=(2, 1, n))
    score_a, score_b = (20 + 0.5 * (common + generator.normal(size=(2, len(SCORERS), n)))).astype(np.float32)
    return _Pairs(prompt, a, b, pair, score_a, score_b)


def _prompt(number: int) -> str:
    chosen = np.random.default_rng(number).choice(_WORDS, 8).tolist()
    return f"{' '.join(chosen)}, number {number}"


def _append(
    store: PairStore,
    pairs: _Pairs,
    images: Ids,
    sizes: NDArray,
    generator: np.random.Generator,
    scorers: tuple[str, str],
) -> None:
    n = len(pairs.pair)
    run = pa.array([_RUN], pa.uuid())
    both, prompts = np.concatenate([pairs.a, pairs.b]), np.concatenate([pairs.prompt, pairs.prompt])
    store.append(
        "images",
        _table("images", 2 * n, image_id=_ids(images), width=512, height=512, format="png", n_bytes=pa.array(sizes)),
    )
    models = np.stack([np.frombuffer(_model(name), np.uint8) for name in _MODELS])
    model_ids = models[generator.integers(0, len(_MODELS), 2 * n)]
    store.append(
        "generations",
        _table(
            "generations",
            2 * n,
            generation_id=_ids(_content_ids(prompts, model_ids, both)),
            prompt_id=_ids(prompts),
            model_id=_ids(model_ids),
            image_id=_ids(both),
            sampling='{"imported":true}',
            seed=-1,
            image_index=0,
            run_id=run,
        ),
    )
    keys = {"pair_id": _ids(pairs.pair)}
    sides = {"prompt_id": _ids(pairs.prompt), "image_a": _ids(pairs.a), "image_b": _ids(pairs.b)}
    store.append("pairs", _table("pairs", n, **keys, **sides, source="import", run_id=run))
    for scorer, score_a, score_b in zip(scorers, pairs.score_a, pairs.score_b, strict=True):
        scores = pa.array(np.concatenate([score_a, score_b]))
        subject = {"image_id": _ids(both), "prompt_id": _ids(prompts)}
        store.append("scores", _table("scores", 2 * n, scorer=scorer, score=scores, run_id=run, **subject))
    logit = (pairs.score_a[0].astype(np.float64) - pairs.score_b[0]) / TEMPERATURE
    by_score = {
        "labeler": scorers[0].split("@")[0],
        "choice": pa.array(np.where(logit > 0, "a", np.where(logit < 0, "b", "tie"))),
        "p_a": pa.array((1 / (1 + np.exp(-logit))).astype(np.float32)),
        "margin": pa.array(np.abs(pairs.score_a[0] - pairs.score_b[0])),
    }
    uniform = generator.random((2, n))
    same = (logit > 0) == (uniform[0] < 0.8)
    by_person = {
        "labeler": PERSON,
        "choice": pa.array(np.where(uniform[1] < 0.1, "tie", np.where(same, "a", "b"))),
        "shown_left": pa.array(np.where(generator.random(n) < 0.5, "a", "b")),
        "response_ms": pa.array(generator.integers(400, 9000, n), pa.int32()),
    }
    for label in (by_score, by_person):
        store.append("labels", _table("labels", n, **keys, revision=0, run_id=run, **label))


def _table(name: str, n: int, **columns: Any) -> pa.Table:
    """Rows for the journal; a single value is repeated in every row, a missing column is null."""
    arrays = []
    for field in TABLES[name]:
        value: Any = columns.get(field.name)
        if isinstance(value, pa.Array) and len(value) == n:
            arrays.append(value.cast(field.type) if value.type != field.type else value)
        elif isinstance(value, pa.Array):
            arrays.append(pa.ExtensionArray.from_storage(pa.uuid(), value.storage.take(pa.array([0] * n))))
        else:
            arrays.append(pa.nulls(n, field.type) if value is None else pa.repeat(pa.scalar(value, field.type), n))
    return pa.table(arrays, schema=TABLES[name])


def _ids(ids: Ids) -> pa.Array:
    storage = pa.Array.from_buffers(pa.binary(16), len(ids), [None, pa.py_buffer(np.ascontiguousarray(ids))])
    return pa.ExtensionArray.from_storage(pa.uuid(), storage)


def _content_ids(*columns: Ids) -> Ids:
    """Ids from the columns' bytes, row by row."""
    rows = np.ascontiguousarray(np.concatenate(columns, 1)).view(f"V{16 * len(columns)}").ravel()
    return np.frombuffer(b"".join(content_bytes(row) for row in rows.tolist()), np.uint8).reshape(-1, 16)


def _model(name: str) -> bytes:
    return content_bytes(canonical({"imported": name}).encode())
