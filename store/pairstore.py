"""PairStore: a folder with a journal, images, and the DuckDB database that is built from the journal."""

import errno
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from itertools import chain, starmap
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import duckdb
import pyarrow as pa

from ..core.errors import (
    BusyError,
    IntegrityError,
    PrefloopError,
    UsageError,
    WriteError,
    cannot_write,
    is_full,
    reading,
    why,
)
from ..core.ids import canonical, pair_id, prompt_id, split_of
from ..core.locks import locked
from . import journal
from .compaction import compact_grown
from .connection import connect, holder, is_broken, is_held, table_with_ids
from .creation import FOLDERS, exists_or_is_free
from .dedupe import new_rows
from .images import image_path, sync_names, write_image
from .ingest import ingest_parts, ingested_parts
from .rebuild import build_database, rebuild
from .verify import schema_version, verified_parts

LOCK_WAIT = 30.0  # seconds
_RETRY = 0.2  # seconds between two tries to open a database that another program has open

Connected = AbstractContextManager[duckdb.DuckDBPyConnection]


class PairStore:
    """What the stages share. Writers append parts to the journal; `ingest` inserts their rows into the tables.

    Nobody keeps the database open: each method opens it, does one thing and closes it, so that processes take turns.
    """

    def __init__(self, path: Path) -> None:
        if "\0" in str(path):
            raise UsageError(f"{str(path)!r} cannot be a path: it contains a NUL character")
        self.path = path
        self._ingested: set[str] = set()
        """Parts known to be in the tables; a part stays ingested."""

    # Opening and creating

    @classmethod
    def open(cls, path: str | Path) -> "PairStore":
        """Open the store in a folder and ingest every finished journal part.

        Raises:
            PrefloopError: if the folder has no store.
            IntegrityError: if the database has another schema version, or lacks rows that the journal has.
        """
        store = cls(Path(path))
        store._refuse_missing()
        with store.session() as connection:
            store._ingested = verified_parts(store, connection)
        try:
            store.ingest()
        except WriteError as error:  # what was ingested before can still be read
            print(f"prefloop: {error}; the newest journal parts are not ingested", file=sys.stderr)
        return store

    @classmethod
    def create(cls, path: str | Path) -> "PairStore":
        """Open the store in a folder, or create it."""
        store = cls(Path(path))
        if exists_or_is_free(store):
            return cls.open(path)
        try:
            for folder in FOLDERS:
                (store.path / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(store.path, error) from error
        with store._lock(shared=False):
            if not store.database.exists():
                build_database(store.path, {})
        return store

    def _refuse_missing(self) -> None:
        with reading(self.path):
            exists, has_database = self.exists() or self.journal.is_dir(), self.database.exists()
        if not exists:
            raise PrefloopError(f"no store at {self.path}; `prefloop generate --store {self.path}` creates one")
        if not has_database:
            raise IntegrityError(f"{self.database} is missing; {self.rebuild_hint()}")

    def exists(self) -> bool:
        """True if a store exists, intact or damaged. An interrupted creation does not count."""
        if self.path.is_file():
            raise UsageError(f"{self.path} is a file, and a store is a folder; name another path")
        return self.journal.is_dir() and (self.database.exists() or bool(journal.parts(self.journal)))

    @property
    def database(self) -> Path:
        return self.path / "pairs.duckdb"

    @property
    def journal(self) -> Path:
        return self.path / "journal"

    def rebuild_hint(self) -> str:
        return f"run `prefloop store rebuild --store {self.path}` to build it again from the journal"

    def _lock(self, shared: bool, wait: float | None = None):
        wait = LOCK_WAIT if wait is None else wait
        return locked(self.path / "store.lock", f"the store {self.path}", shared=shared, wait=wait)

    def stage_lock(self, kind: str, key: str):
        """A lock for one stage with one key: a second process fails at once, with the id of the first."""
        folder = self.path / "locks"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        return locked(folder / f"{kind}-{key}.lock", f"this {kind} run of {self.path}")

    @contextmanager
    def session(self, *, write: bool = False, wait: float | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
        """A short connection: reading beside other readers, or writing alone. Never nested.

        Args:
            wait: seconds to wait for other processes.
        """
        with self.opened(lambda: connect(self.database, read_only=not write), write=write, wait=wait) as connection:
            yield connection

    @contextmanager
    def opened(
        self, open_database: Callable[[], Connected], *, write: bool = False, wait: float | None = None
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """Call `open_database` under the store's lock, as soon as no process, prefloop's or another program's, holds the file."""
        wait = LOCK_WAIT if wait is None else wait
        until, connected = time.monotonic() + wait, False
        while True:
            try:
                with ExitStack() as stack:
                    stack.enter_context(self._lock(shared=not write, wait=wait))
                    connection = stack.enter_context(open_database())
                    connected = True
                    yield connection
                    return
            except duckdb.Error as error:
                if connected and not is_broken(error):
                    raise
                if connected or not is_held(error) or time.monotonic() >= until:
                    raise self.unusable(error) from error
            time.sleep(_RETRY)  # the lock is released: another program has the database open

    def unusable(self, error: duckdb.Error) -> PrefloopError:
        """The error to raise for a database that DuckDB cannot use."""
        if is_held(error):
            return BusyError(f"the database of {self.path} is held by {holder(error)}; close it there")
        if is_full(error):
            return cannot_write(self.database, error)
        if reason := why(error, errno.EROFS, errno.EACCES, errno.EPERM):
            return WriteError(f"cannot open {self.database}: {reason}")
        return IntegrityError(f"{self.database} cannot be read; {self.rebuild_hint()}")

    def sql(self, query: str, parameters: object = None, *, as_ids: bool = False) -> pa.Table:
        """The result of one read-only query; ids are strings, or Arrow UUIDs with `as_ids`."""
        with self.session() as connection:
            if as_ids:
                return table_with_ids(connection, query, parameters)
            return connection.sql(query, params=parameters).to_arrow_table()

    def rows(self, query: str, parameters: Sequence | Mapping | None = None) -> list[tuple]:
        """The result of one read-only query as Python values; ids are UUIDs."""
        with self.session() as connection:
            return connection.execute(query, parameters).fetchall()

    def prompts_by_id(self, ids: pa.ChunkedArray, column: Literal["prompt", "tags"] = "prompt") -> dict[bytes, str]:
        """The prompts that have one of these ids (Arrow UUIDs, or their 16 bytes), or their tags in JSON, by the 16 bytes of
        the id."""
        with self.session() as connection:
            connection.register("wanted", pa.table({"prompt_id": ids.cast(pa.uuid())}))
            query = f"select prompt_id, {column} from prompts semi join wanted using (prompt_id)"
            table = table_with_ids(connection, query)
        ids = (chunk.storage for chunk in table["prompt_id"].chunks)
        return dict(zip(chain.from_iterable(map(pa.Array.to_pylist, ids)), table[column].to_pylist(), strict=True))

    # Writing

    def append(self, table: str, rows: Iterable[Mapping] | pa.Table) -> None:
        """Append rows to the journal. They and the image files they refer to are safe on disk when this returns; `ingest`
        puts them into the tables."""
        if table == "images":
            if isinstance(rows, pa.Table):
                table_rows: Any = rows
                images = [image for chunk in table_rows["image_id"].chunks for image in chunk.storage.to_pylist()]
            else:
                rows = list(rows)
                images = [row["image_id"].bytes for row in rows]
            sync_names(self.path / "images", images)
        journal.append(self.journal, table, rows)

    def append_new(self, table: str, rows: Iterable[Mapping]) -> int:
        """Append the rows whose key is not in the tables yet; returns how many they are."""
        candidates = journal.as_table(table, rows)
        if candidates.num_rows:
            with self.session() as connection:
                candidates = new_rows(connection, table, candidates, journal.key(table))
            self.append(table, candidates)
        return candidates.num_rows

    def add_prompts(self, prompts: Iterable[tuple[str, Mapping[str, str]]]) -> None:
        """Append prompt texts with their tags; a prompt that is in the tables already keeps its tags."""

        def row(text: str, tags: Mapping[str, str]) -> dict:
            identity = prompt_id(text)
            return {"prompt_id": identity, "prompt": text, "split": split_of(identity), "tags": canonical(dict(tags))}

        self.append_new("prompts", starmap(row, prompts))

    def write_image(self, data: bytes, width: int, height: int, extension: str = "png") -> dict:
        """Write an image file; returns its row for the `images` table, whose `append` makes the file safe."""
        identity = write_image(self.path / "images", data, extension)
        return {"image_id": identity, "width": width, "height": height, "format": extension, "n_bytes": len(data)}

    def image_path(self, image: UUID, extension: str = "png") -> Path:
        return image_path(self.path / "images", image, extension)

    def ingest(self, wait: float | None = None) -> int:
        """Insert the rows of finished journal parts into the tables, and merge parts if there are many; returns how many rows
        were new.

        Idempotent: a crash at any point costs nothing, and the next call does what is left.

        Args:
            wait: seconds to wait for other processes.
        """
        parts = journal.parts(self.journal)
        if parts.keys() <= self._ingested:
            return 0
        with self.session(write=True, wait=wait) as connection:
            parts = journal.parts(self.journal)  # again: while this waited for the lock, parts may have been compacted
            self._ingested = ingested_parts(connection)
            new = {name: table for name, table in parts.items() if name not in self._ingested}
            n_added = ingest_parts(connection, self.journal, new)
            self._ingested |= parts.keys()
            with suppress(WriteError):  # the rows are in the tables, and the next call tries again
                if compact_grown(connection, self.journal):
                    self._ingested = ingested_parts(connection)
        return n_added

    def has_new_parts(self) -> bool:
        """Whether the journal has parts that this object has not ingested, such as those of another process."""
        return not journal.parts(self.journal).keys() <= self._ingested

    def try_ingest(self, wait: float | None = None) -> None:
        """Like `ingest`, but if the database is busy, print that and leave the parts, which are safe, to the next command."""
        try:
            self.ingest(wait)
        except BusyError as error:
            line = f"{error}; the new rows are safe in the journal, and the next command ingests them"
            print(f"prefloop: {line}", file=sys.stderr)

    def rebuild(self, *, allow_missing: bool = False) -> int:
        """Build the database again from the journal alone; returns the number of parts. See `rebuild.rebuild`."""
        return rebuild(self, allow_missing=allow_missing).n_parts

    def schema_version(self) -> int:
        """Schema version of the database, whatever else it contains."""
        self._refuse_missing()
        with self.session() as connection:
            return schema_version(self, connection)


def new_pair(prompt: UUID, first: UUID, second: UUID, source: str, run: UUID | None = None) -> dict | None:
    """The row of a pair of two images of one prompt; None if they are the same image."""
    if first == second:
        return None
    a, b = sorted((first, second))
    return {
        "pair_id": pair_id(prompt, a, b),
        "prompt_id": prompt,
        "image_a": a,
        "image_b": b,
        "source": source,
        "run_id": run,
    }
