"""A stretch of an import: records whose pictures are on their way to disk, until they are written to the journal together."""

import os
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

from ...core.ids import content_bytes
from .. import journal
from ..dedupe import count_conflicts, new_rows, refuse_other_labelers
from ..images import ImageError, format_of, load_image, write_image
from ..pairstore import PairStore
from .record import Picture, Record
from .rows import Rows

PAIRS = 65_536
PICTURE_BYTES = 128_000_000
"""A part is full with so many pairs, or so many bytes of pictures that the store lacks."""
_MISSING = b""


class Part:
    """Pictures are decoded and written by threads while records come in; `write` puts the rest beside them."""

    def __init__(self, store: PairStore, labeler: str, run_id: UUID) -> None:
        self.store, self.labeler, self.run_id = store, labeler, run_id
        new = ("new_prompts", "new_images", "new_pairs", "new_labels", "new_models", "new_generations", "new_labelers")
        self.counts: Counter[str] = Counter(dict.fromkeys(("pairs", "repeated", *new), 0))
        self.left_out: Counter[str] = Counter()
        """Pairs that cannot be used, by reason."""
        self.examples: list[str] = []
        self._known = {image.bytes for (image,) in store.rows("select image_id from images")}
        self._pool = ThreadPoolExecutor(os.cpu_count())
        self._taker = ThreadPoolExecutor(1)
        self._taking: Future[int] | None = None
        self._clear()

    def _clear(self) -> None:
        self._pending: list[tuple[Record, bytes, list[bytes]]] = []
        self._pictures: dict[bytes, Future[tuple[int, int, str, int]]] = {}
        self._picture_bytes = self._pairs = 0

    def close(self) -> None:
        """Let go of the threads; what was written is in the tables when this returns."""
        self._pool.shutdown(cancel_futures=True)
        self._taker.shutdown()
        self._taken()

    def _taken(self) -> None:
        """Wait until what was last written is in the tables."""
        taking, self._taking = self._taking, None
        if taking is not None:
            taking.result()

    @property
    def full(self) -> bool:
        return self._pairs >= PAIRS or self._picture_bytes >= PICTURE_BYTES

    def leave_out(self, where: str, reason: str) -> None:
        if reason not in self.left_out:
            self.examples.append(f"{where}: {reason}")
        self.left_out[reason] += 1

    def add(self, record: Record) -> None:
        images = []
        for picture in record.pictures:
            try:
                data = picture.source if isinstance(picture.source, bytes) else picture.source.read_bytes()
            except OSError:
                images.append(_MISSING)
                continue
            identity = content_bytes(data)
            images.append(identity)
            if identity not in self._known and identity not in self._pictures:
                self._pictures[identity] = self._pool.submit(_keep, self.store.path / "images", data)
                self._picture_bytes += len(data)
        models = [Picture(b"", picture.model) for picture in record.pictures]  # the bytes are let go
        light = Record(record.where, record.prompt, models, record.judgements, record.tags)
        self._pending.append((light, content_bytes(record.prompt.encode()), images))
        self._pairs += len(record.judgements)

    def write(self) -> None:
        """Put everything into the journal: safe when this returns. It comes into the tables while more is read."""
        rows = Rows(self.labeler, self.run_id)
        unusable = {_MISSING: "image missing"}
        for identity, picture in self._pictures.items():
            try:
                rows.tables["images"][identity] = (identity, *picture.result())
            except ImageError as error:
                unusable[identity] = f"image {error.reason}"
        for record, prompt, images in self._pending:
            for judgement in record.judgements:
                first, second = images[judgement.first], images[judgement.second]
                reason = unusable.get(first) or unusable.get(second) or (first == second and "one picture twice")
                if reason:
                    self.leave_out(record.where, reason)
                else:
                    rows.add_pair(record, judgement, prompt, first, second)
                    self.counts["pairs"] += 1
        self._append(rows)
        self._known |= rows.tables["images"].keys()
        self._clear()

    def _append(self, rows: Rows) -> None:
        tables = rows.as_tables()
        self._taken()
        with self.store.session() as connection:
            new = {name: new_rows(connection, name, table, journal.key(name)) for name, table in tables.items()}
            self.counts["repeated"] += rows.repeated
            if "labels" in tables:
                self.counts["repeated"] += count_conflicts(connection, tables["labels"])
                refuse_other_labelers(connection, new["labels"]["labeler"].unique().to_pylist())
        for name in journal.TABLES:  # pictures before pairs, pairs before labels
            if name in new:
                self.store.append(name, new[name])
                self.counts[f"new_{name}"] += new[name].num_rows
        self._taking = self._taker.submit(self.store.ingest)


def _keep(folder: Path, data: bytes) -> tuple[int, int, str, int]:
    """Width, height, format and size of a picture that can be decoded and is on disk, whole."""
    image = load_image(data)
    extension = format_of(data)
    write_image(folder, data, extension)
    return image.width, image.height, extension, len(data)
