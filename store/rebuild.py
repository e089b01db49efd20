"""Build the database from the journal: under a temporary name first, then in place of the old one."""

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
from .connection import connect
from .ingest import ingest_parts, ingested_parts
from .parts import missing

if TYPE_CHECKING:
    from .pairstore import PairStore

SCHEMA_VERSION = 5
"""1: prefloop 0.1, with other column names and fewer views. 2: without the view run_rounds, and preferences without round and
margin_rank. 3: without the table evaluations and its views; a pair's source could not be pair.
4: without labels.notes and the view human_labels."""
_KEPT, _DAMAGED = "pairs.duckdb.old", "pairs.duckdb.damaged"
TEMPORARY = ".pairs."
_READABLE_SINCE = "v1.2.0"  # version of DuckDB: a shell need not be as new as the package


@dataclass(frozen=True)
class Rebuilt:
    """The result of a rebuild."""

    n_parts: int
    missing: list[str]
    """Parts that the previous database listed, and that are missing."""
    compared: bool
    """Whether a previous database could be read; without one it cannot be known which parts are missing."""
    kept: Path | None
    """Where the previous database is kept."""


def rebuild(store: "PairStore", *, allow_missing: bool = False) -> Rebuilt:
    """Build the database again from the journal alone.

    Args:
        allow_missing: continue without missing parts; their rows are lost.

    Raises:
        IntegrityError: if parts are damaged or missing; nothing is changed then.
    """
    with reading(store.path):
        if not store.journal.is_dir():
            raise PrefloopError(f"no store at {store.path}")
    listed, readable = _listed(store)
    with store._lock(shared=False):
        parts = journal.parts(store.journal)
        gone = missing(store.journal, listed or (), parts)
        if gone and not allow_missing:
            raise IntegrityError(
                f"the database of {store.path} was built from {len(gone)} journal part{'s' * (len(gone) > 1)} that "
                f"{'are' if len(gone) > 1 else 'is'} missing: {', '.join(gone[:3])}{', …' * (len(gone) > 3)}; restore "
                f"{'them' if len(gone) > 1 else 'it'} from a backup, or run `prefloop store rebuild "
                f"--allow-missing --store {store.path}` to drop the rows"
            )
        # a database that cannot be read does not replace an earlier one that can
        kept = build_database(store.path, parts, _KEPT if readable else _DAMAGED)
    return Rebuilt(len(parts), gone, listed is not None, kept)


def _listed(store: "PairStore") -> tuple[set[str] | None, bool]:
    """Parts from which the database, or the one kept before it, was built, and whether the database itself can be read.

    The set is None if neither can be read.
    """
    if store.database.exists():
        with suppress(duckdb.Error, IntegrityError):
            return {name for (name,) in store.rows("select name from parts")}, True
    earlier = store.path / _KEPT
    if earlier.exists():
        with suppress(duckdb.Error, IntegrityError), connect(earlier, read_only=True) as connection:
            return ingested_parts(connection), False
    return None, False


def build_database(folder: Path, parts: Mapping[str, str], keep_as: str = _KEPT) -> Path | None:
    """Build a store's database from parts, name → table. The caller holds the store's lock.

    Args:
        keep_as: name under which the previous database is kept.

    Returns:
        Where the previous database is kept, if there was one.
    """
    database = folder / "pairs.duckdb"
    temporary = folder / f"{TEMPORARY}{os.getpid()}.duckdb"
    try:
        for left_over in folder.glob(f"{TEMPORARY}*"):
            left_over.unlink()
        with connect(temporary, read_only=False, readable_since=_READABLE_SINCE) as connection:
            # else each statement is a commit of its own, and waits for the disk
            connection.execute(f"begin; {schema_sql()}; commit")
            now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
            connection.execute("insert into meta values (?, ?)", [SCHEMA_VERSION, now])
            if parts:
                ingest_parts(connection, folder / "journal", parts)
            connection.execute("checkpoint")  # closing does it too, but reports no failure
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
    """Give the database, with its write-ahead log, a second name beside it, in place of the one kept before.

    A new database beside the log of an old one would have its rows twice.
    """
    log = Path(f"{database}.wal")
    if not database.exists():
        log.unlink(missing_ok=True)
        return None
    try:
        os.link(database, temporary)  # so that a database exists at every moment
    except OSError:
        os.replace(database, temporary)  # no hard links here
    Path(f"{kept}.wal").unlink(missing_ok=True)
    os.replace(temporary, kept)
    if log.exists():
        os.replace(log, f"{kept}.wal")
    return kept


def schema_sql() -> str:
    """Tables, views and macros, with the comments on them."""
    return "\n".join((files("prefloop.store") / name).read_text() for name in ("schema.sql", "comments.sql"))
