"""The database from the journal: made under another name, on disk, and only then put in place of the one there was."""

import datetime
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from ..core.errors import IntegrityError, PrefloopError, cannot_write, reading
from ..core.files import sync_folder
from . import journal
from .connection import attached
from .ingest import take, taken_parts
from .parts import missing

if TYPE_CHECKING:
    from .pairstore import PairStore

SCHEMA_VERSION = 1
_KEPT, _DAMAGED = "pairs.duckdb.old", "pairs.duckdb.damaged"
TEMPORARY = ".pairs."
_READABLE_SINCE = "v1.2.0"  # version of DuckDB: a shell need not be as new as the package


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild found."""

    n_parts: int
    missing: list[str]
    """Parts that the database before listed, and that are gone."""
    compared: bool
    """Whether there was a database that could be read; without one nobody knows which parts are gone."""
    kept: Path | None
    """The database before."""


def rebuild(store: "PairStore", *, allow_missing: bool = False) -> Rebuilt:
    """Make the database again from the journal alone.

    Args:
        allow_missing: go on without parts that are gone; their rows are lost.

    Raises:
        IntegrityError: where parts are damaged, or gone; nothing is changed then.
    """
    with reading(store.path):
        if not store.journal.is_dir():
            raise PrefloopError(f"there is no store at {store.path}")
    listed, readable = _listed(store)
    with store._lock(shared=False):
        found = journal.parts(store.journal)
        gone = missing(store.journal, listed or (), found)
        if gone and not allow_missing:
            raise IntegrityError(
                f"the database of {store.path} was made from {len(gone)} journal part{'s' * (len(gone) > 1)} that "
                f"{'are' if len(gone) > 1 else 'is'} gone: {', '.join(gone[:3])}{', …' * (len(gone) > 3)}; bring "
                f"{'them' if len(gone) > 1 else 'it'} back from a backup, or run `prefloop store rebuild "
                f"--allow-missing --store {store.path}` to drop the rows"
            )
        # one that cannot be read does not take the place of an earlier one that can
        kept = make_database(store.path, found, _KEPT if readable else _DAMAGED)
    return Rebuilt(len(found), gone, listed is not None, kept)


def _listed(store: "PairStore") -> tuple[set[str] | None, bool]:
    """Parts that the database, or the one kept before it, was made from, and whether the database itself can be read.

    None where neither can be read.
    """
    if store.database.exists():
        with suppress(duckdb.Error, IntegrityError):
            return {name for (name,) in store.rows("select name from parts")}, True
    earlier = store.path / _KEPT
    if earlier.exists():
        with suppress(duckdb.Error, IntegrityError), attached(earlier, read_only=True) as connection:
            return taken_parts(connection), False
    return None, False


def make_database(folder: Path, found: Mapping[str, str], keep_as: str = _KEPT) -> Path | None:
    """The database of a store from parts, name → table. The caller holds the store's lock.

    Args:
        keep_as: name that the database before gets.

    Returns:
        Where the database is that was there before.
    """
    database = folder / "pairs.duckdb"
    temporary = folder / f"{TEMPORARY}{os.getpid()}.duckdb"
    try:
        for left_over in folder.glob(f"{TEMPORARY}*"):
            left_over.unlink()
        with attached(temporary, read_only=False, readable_since=_READABLE_SINCE) as connection:
            connection.execute(schema_sql())
            now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
            connection.execute("insert into meta values (?, ?)", [SCHEMA_VERSION, now])
            if found:
                take(connection, folder / "journal", found)
            connection.execute("checkpoint")  # closing would do it too, but says nothing where it fails
        with open(temporary, "rb+") as file:  # closed by DuckDB: the descriptor drops no lock
            os.fsync(file.fileno())
        kept = _keep(database, temporary.with_suffix(".old"), folder / keep_as)
        os.replace(temporary, database)
        sync_folder(folder)
    except (OSError, duckdb.IOException, duckdb.FatalException) as error:
        raise cannot_write(database, error) from error
    finally:
        for left_over in folder.glob(f"{temporary.stem}*"):
            left_over.unlink()
    return kept


def _keep(database: Path, temporary: Path, kept: Path) -> Path | None:
    """Give the database, with its write-ahead log, a second name beside it; the one kept before goes.

    A new database beside the log of an old one would have its rows twice.
    """
    log = Path(f"{database}.wal")
    if not database.exists():
        log.unlink(missing_ok=True)
        return None
    try:
        os.link(database, temporary)  # at no moment is there none
    except OSError:
        os.replace(database, temporary)  # no hard links here
    Path(f"{kept}.wal").unlink(missing_ok=True)
    os.replace(temporary, kept)
    if log.exists():
        os.replace(log, f"{kept}.wal")
    return kept


def schema_sql() -> str:
    """Tables, views and macros, and what they mean."""
    return "\n".join((files("prefloop.store") / name).read_text() for name in ("schema.sql", "comments.sql"))
