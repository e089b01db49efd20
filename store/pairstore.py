"""PairStore: a folder with a journal, pictures, and the DuckDB database that is made from them."""

import errno
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any
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
from .connection import attached, is_broken, is_held, table_with_ids
from .images import image_path, sync_names, write_image
from .ingest import take, taken_parts
from .rebuild import TEMPORARY, make_database, rebuild
from .verify import schema_version, verified_parts
from .views import are_current, renew

LOCK_WAIT = 30.0  # seconds
_RETRY = 0.2  # seconds between two tries to open a database that another program has open
_FOLDERS = ("journal", "images", "cache")

Connected = AbstractContextManager[duckdb.DuckDBPyConnection]


class PairStore:
    """Everything the stages share. Writers append to the journal; `absorb` takes the parts into the tables.

    Nobody keeps the database open: each method opens it, does one thing and closes it, so that processes take turns.
    """

    def __init__(self, path: Path) -> None:
        if "\0" in str(path):
            raise UsageError(f"no path can be {str(path)!r}: it holds a NUL character")
        self.path = path
        self._taken: set[str] = set()
        """Parts known to be in the tables; a part once taken stays so."""

    # Opening and making

    @classmethod
    def open(cls, path: str | Path) -> "PairStore":
        """The store in that folder, with every finished journal part taken in.

        Raises:
            PrefloopError: where there is none.
            IntegrityError: where the database has lost rows that the journal holds.
        """
        store = cls(Path(path))
        store._refuse_missing()
        with store.session() as connection:
            store._taken = verified_parts(store, connection)
            current = are_current(connection)
        if not current:
            renew(store.database, store.path / "store.lock")
        try:
            store.ingest()
        except WriteError as error:  # what is in the tables can be read
            print(f"prefloop: {error}; the newest parts of the journal are not in the tables", file=sys.stderr)
        return store

    @classmethod
    def create(cls, path: str | Path) -> "PairStore":
        """The store in that folder; made where there is none."""
        store = cls(Path(path))
        with reading(store.path):
            # read before asking whether it is there, since another process may be making it
            names = {entry.name for entry in store.path.iterdir()} if store.path.is_dir() else set()
            exists = store.exists()
        if exists:
            return cls.open(path)
        # a making that was killed leaves folders, and half a database under a temporary name
        foreign = {name for name in names - {*_FOLDERS, "locks", "store.lock"} if not name.startswith(TEMPORARY)}
        if foreign:
            raise UsageError(f"{store.path} exists and is no store; name another folder")
        try:
            for folder in _FOLDERS:
                (store.path / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(store.path, error) from error
        with store._lock(shared=False):
            if not store.database.exists():
                make_database(store.path, {})
        return store

    def _refuse_missing(self) -> None:
        with reading(self.path):
            exists, whole = self.exists() or self.journal.is_dir(), self.database.exists()
        if not exists:
            raise PrefloopError(f"there is no store at {self.path}; `prefloop generate --store {self.path}` makes one")
        if not whole:
            raise IntegrityError(f"{self.database} is gone; {self.rebuild_hint()}")

    def exists(self) -> bool:
        """Whether there is a store, whole or not; one whose making was killed holds nothing and is none."""
        if self.path.is_file():
            raise UsageError(f"{self.path} is a file, and a store is a folder; name another one")
        return self.journal.is_dir() and (self.database.exists() or bool(journal.parts(self.journal)))

    @property
    def database(self) -> Path:
        return self.path / "pairs.duckdb"

    @property
    def journal(self) -> Path:
        return self.path / "journal"

    def rebuild_hint(self) -> str:
        return f"run `prefloop store rebuild --store {self.path}` to make it again from the journal"

    def _lock(self, shared: bool, wait: float | None = None):
        wait = LOCK_WAIT if wait is None else wait
        return locked(self.path / "store.lock", f"the store {self.path}", shared=shared, wait=wait)

    def stage_lock(self, kind: str, key: str):
        """One process at a time does the same work; a second one ends at once and names the first."""
        folder = self.path / "locks"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        return locked(folder / f"{kind}-{key}.lock", f"this {kind} run of {self.path}")

    @contextmanager
    def session(self, *, write: bool = False, wait: float | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection for a moment: reading beside other readers, or writing alone. Never nested.

        Args:
            wait: seconds to wait for others.
        """
        with self.opened(lambda: attached(self.database, read_only=not write), write=write, wait=wait) as connection:
            yield connection

    @contextmanager
    def opened(
        self, connect: Callable[[], Connected], *, write: bool = False, wait: float | None = None
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """What `connect` gives, under the store's lock, as soon as no process is in the way: of ours or of others."""
        wait = LOCK_WAIT if wait is None else wait
        until, connected = time.monotonic() + wait, False
        while True:
            try:
                with ExitStack() as stack:
                    stack.enter_context(self._lock(shared=not write, wait=wait))
                    connection = stack.enter_context(connect())
                    connected = True
                    yield connection
                    return
            except duckdb.Error as error:
                if connected and not is_broken(error):
                    raise
                if connected or not is_held(error) or time.monotonic() >= until:
                    raise self.unusable(error) from error
            time.sleep(_RETRY)  # without the lock: another program has the database open

    def unusable(self, error: duckdb.Error) -> PrefloopError:
        """The error to raise where DuckDB cannot use the database, from what it says."""
        if is_held(error):
            return _held_outside(self.path, error)
        if is_full(error):
            return cannot_write(self.database, error)
        if reason := why(error, errno.EROFS, errno.EACCES, errno.EPERM):
            return WriteError(f"cannot open {self.database}: {reason}")
        return IntegrityError(f"{self.database} cannot be read; {self.rebuild_hint()}")

    def sql(self, query: str, parameters: object = None, *, as_ids: bool = False) -> pa.Table:
        """The answer of one read-only query; ids come as strings, or as Arrow's UUID if asked for."""
        with self.session() as connection:
            if as_ids:
                return table_with_ids(connection, query, parameters)
            return connection.sql(query, params=parameters).to_arrow_table()

    def rows(self, query: str, parameters: Sequence | Mapping | None = None) -> list[tuple]:
        """The answer of one read-only query as Python values; ids come as UUID."""
        with self.session() as connection:
            return connection.execute(query, parameters).fetchall()

    def prompts_by_id(self) -> dict[bytes, str]:
        """Every prompt by the 16 bytes of its id: they are few beside pairs and pictures."""
        table = self.sql("select prompt_id, prompt from prompts", as_ids=True)
        ids = (chunk.storage for chunk in table["prompt_id"].chunks)
        return dict(zip(chain.from_iterable(map(pa.Array.to_pylist, ids)), table["prompt"].to_pylist(), strict=True))

    # Writing

    def append(self, table: str, rows: Iterable[Mapping] | pa.Table) -> None:
        """Put rows into the journal: safe on disk when this returns, and so are the pictures they mention; in the tables
        after `absorb`."""
        if table == "images":
            if isinstance(rows, pa.Table):
                table_rows: Any = rows
                mentioned = [image for chunk in table_rows["image_id"].chunks for image in chunk.storage.to_pylist()]
            else:
                rows = list(rows)
                mentioned = [row["image_id"].bytes for row in rows]
            sync_names(self.path / "images", mentioned)
        journal.append(self.journal, table, rows)

    def add_prompts(self, prompts: Iterable[tuple[str, Mapping[str, str]]]) -> None:
        """Texts with their tags. Leave out those that the store has, so that they keep their tags."""
        rows = []
        for text, tags in prompts:
            identity = prompt_id(text)
            rows.append(
                {"prompt_id": identity, "prompt": text, "split": split_of(identity), "tags": canonical(dict(tags))}
            )
        self.append("prompts", rows)

    def write_image(self, data: bytes, width: int, height: int, extension: str = "png") -> dict:
        """Put a picture's file on disk; returns its row for the `images` table, whose `append` makes it safe."""
        identity = write_image(self.path / "images", data, extension)
        return {"image_id": identity, "width": width, "height": height, "format": extension, "n_bytes": len(data)}

    def image_path(self, image: UUID, extension: str = "png") -> Path:
        return image_path(self.path / "images", image, extension)

    def ingest(self, wait: float | None = None) -> int:
        """Take finished journal parts into the tables; the number of rows that were new.

        Idempotent: a crash at any point costs nothing, the next call takes what is left.

        Args:
            wait: seconds to wait for others.
        """
        found = journal.parts(self.journal)
        if found.keys() <= self._taken:
            return 0
        with self.session(write=True, wait=wait) as connection:
            found = journal.parts(self.journal)  # again: until the lock was ours, parts may have been compacted
            self._taken = taken_parts(connection)
            added = take(connection, self.journal, {n: table for n, table in found.items() if n not in self._taken})
        self._taken |= found.keys()
        return added

    def try_ingest(self, wait: float | None = None) -> None:
        """As `absorb`; where others have the database, say so and leave the parts to the next command: they are safe."""
        try:
            self.ingest(wait)
        except BusyError as error:
            line = f"{error}; what is new is in the journal, and the next command takes it into the tables"
            print(f"prefloop: {line}", file=sys.stderr)

    def rebuild(self, *, allow_missing: bool = False) -> int:
        """Make the database again from the journal alone; the number of parts taken. See `rebuild.rebuild`."""
        return rebuild(self, allow_missing=allow_missing).n_parts

    def schema_version(self) -> int:
        """Of the database as it is, before anything else of it is looked at."""
        self._refuse_missing()
        with self.session() as connection:
            return schema_version(self, connection)


def _held_outside(path: Path, error: Exception) -> PrefloopError:
    found = re.search(r"PID (\d+)", str(error))
    holder = f"process {found[1]}" if found else "another program"
    return BusyError(f"the database of {path} is held by {holder}; close it there")


def new_pair(prompt: UUID, first: UUID, second: UUID, source: str, run: UUID | None = None) -> dict | None:
    """The row of a pair of two pictures of one prompt; None where they are the same picture."""
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
