"""A part of an import: records whose images are being written, until all go into the journal together."""

import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

from ...core.ids import content_bytes
from .. import journal
from ..dedupe import count_conflicts, new_rows, refuse_other_labelers
from ..images import ImageError, format_of, load_image, write_image
from ..pairstore import PairStore
from .record import Record
from .rows import Rows

PAIRS = 65_536
IMAGE_BYTES = 128_000_000
"""A part is full with this many pairs, or images without pairs, or this many bytes of images that the store lacks."""
_MISSING = b""


class Part:
    """Threads decode and write images while records come in; `write` adds all other rows."""

    def __init__(self, store: PairStore, labeler: str | None, run_id: UUID) -> None:
        self.store, self.labeler, self.run_id = store, labeler, run_id
        self.labelers: set[str] = set()
        """Those of the labels that were read."""
        new = ("new_prompts", "new_images", "new_pairs", "new_labels", "new_models", "new_generations", "new_labelers")
        self.counts: Counter[str] = Counter(dict.fromkeys(("pairs", "repeated", *new), 0))
        self.excluded: Counter[str] = Counter()
        """Reason → number of pairs, or of images without pairs, that cannot be used."""
        self.examples: list[str] = []
        self._stored = {image.bytes for (image,) in store.rows("select image_id from images")}
        self._pool = ThreadPoolExecutor(os.cpu_count())
        self._ingester = ThreadPoolExecutor(1)
        self._ingesting: Future[int] | None = None
        self._clear()

    def _clear(self) -> None:
        self._pending: list[tuple[Record, bytes, list[bytes]]] = []
        self._images: dict[bytes, Future[tuple[int, int, str, int]]] = {}
        self._image_bytes = self._pairs = 0

    def close(self) -> None:
        """Stop the threads; what was written is in the tables when this returns."""
        self._pool.shutdown(cancel_futures=True)
        self._ingester.shutdown()
        self._wait_for_ingest()

    def _wait_for_ingest(self) -> None:
        """Wait until the last write is in the tables."""
        ingesting, self._ingesting = self._ingesting, None
        if ingesting is not None:
            ingesting.result()

    @property
    def full(self) -> bool:
        return self._pairs >= PAIRS or self._image_bytes >= IMAGE_BYTES

    def exclude(self, where: str, reason: str) -> None:
        if reason not in self.excluded:
            self.examples.append(f"{where}: {reason}")
        self.excluded[reason] += 1

    def add(self, record: Record) -> None:
        images = []
        for image in record.images:
            try:
                data = image.source if isinstance(image.source, bytes) else image.source.read_bytes()
            except OSError:
                images.append(_MISSING)
                continue
            identity = content_bytes(data)
            images.append(identity)
            if identity not in self._stored and identity not in self._images:
                self._images[identity] = self._pool.submit(_store_image, self.store.path / "images", data)
                self._image_bytes += len(data)
        models = [image._replace(source=b"") for image in record.images]  # without the bytes, to free memory
        without_bytes = Record(record.where, record.prompt, models, record.preferences, record.tags)
        self._pending.append((without_bytes, content_bytes(record.prompt.encode()), images))
        self._pairs += len(record.preferences) or 1

    def write(self) -> None:
        """Put everything into the journal: safe when this returns. It is ingested while more is read."""
        rows = Rows(self.labeler or "", self.run_id)
        problems = {_MISSING: "image missing"}
        for identity, image in self._images.items():
            try:
                rows.tables["images"][identity] = (identity, *image.result())
            except ImageError as error:
                problems[identity] = f"image {error.reason}"
        for record, prompt, images in self._pending:
            if not record.preferences:
                self._add_image(rows, record, prompt, images[0], problems)
            for preference in record.preferences:
                first, second = images[preference.first], images[preference.second]
                reason = problems.get(first) or problems.get(second) or (first == second and "the same image twice")
                if reason:
                    self.exclude(record.where, reason)
                else:
                    rows.add_pair(record, preference, prompt, first, second)
                    self.counts["pairs"] += 1
        self._append(rows)
        self._stored |= rows.tables["images"].keys()
        self._clear()

    def _add_image(
        self, rows: Rows, record: Record, prompt: bytes, image: bytes, problems: Mapping[bytes, str]
    ) -> None:
        if reason := problems.get(image):
            self.exclude(record.where, reason)
        else:
            rows.add_image(record, prompt, image)
            self.counts["images"] += 1

    def _append(self, rows: Rows) -> None:
        tables = rows.as_tables()
        self._wait_for_ingest()
        with self.store.session() as connection:
            new = {name: new_rows(connection, name, table, journal.key(name)) for name, table in tables.items()}
            self.counts["repeated"] += rows.repeated
            if "labels" in tables:
                self.labelers |= set(tables["labels"]["labeler"].unique().to_pylist())
                self.counts["repeated"] += count_conflicts(connection, tables["labels"])
                refuse_other_labelers(connection, new["labels"]["labeler"].unique().to_pylist())
        for name in journal.TABLES:  # images before pairs, pairs before labels
            if name in new:
                self.store.append(name, new[name])
                self.counts[f"new_{name}"] += new[name].num_rows
        self._ingesting = self._ingester.submit(self.store.ingest)


def _store_image(folder: Path, data: bytes) -> tuple[int, int, str, int]:
    """Decode an image and write it to disk; its width, height, format and size."""
    image = load_image(data)
    extension = format_of(data)
    write_image(folder, data, extension)
    return image.width, image.height, extension, len(data)
