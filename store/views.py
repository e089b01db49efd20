"""The views of a database, made again where an earlier prefloop made them otherwise."""

import sys
from importlib.resources import files
from pathlib import Path

import duckdb

from ..core.errors import PrefloopError
from ..core.locks import locked
from ..core.text import visible
from .connection import attached

WAIT = 2.0
"""Seconds for others to let go of the store."""
_MARK = "views of version 2."
"""Ends the comment on `meta`; another number has the views of every store made again."""


def are_current(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether this prefloop's views are in the database."""
    query = "select comment from duckdb_tables() where table_name = 'meta' and database_name = current_database()"
    ((comment,),) = connection.execute(query).fetchall()
    return (comment or "").endswith(_MARK)


def renew(database: Path, lock: Path) -> None:
    """Make the views again if that can be done soon: a store that can only be read, or is in use, keeps those it has."""
    try:
        with locked(lock, f"the store {database.parent}", wait=WAIT), attached(database, read_only=False) as connection:
            schema, comments = ((files("prefloop.store") / name).read_text() for name in ("schema.sql", "comments.sql"))
            views = schema[schema.index("-- Views") :]
            connection.execute(f"begin; {views} {comments} commit")
    except (PrefloopError, OSError, duckdb.Error) as error:
        print(
            f"prefloop: {database} has the views of an earlier prefloop, in which pairs of evaluations have the split "
            f"of their prompt; they could not be renewed: {visible(str(error).splitlines()[0])}",
            file=sys.stderr,
        )
