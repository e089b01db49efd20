"""Merge many small journal parts into larger ones. At every moment the rows are in the old parts, the new one, or both."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb

from ..core.errors import cannot_write
from ..core.files import sync_folder
from . import journal
from .dedupe import in_schema
from .ingest import replace_parts, rows_of_parts
from .parts import damage, footer

SIZES = ((0, 64), (64, 16_384))
"""Rows of a part that is small, and of one that is medium: above the first number and up to the second."""
MANY = 200
"""Parts of a table and a size that are left as they are."""
ROWS, PARTS = 131_072, 2000
"""Most rows and parts that are merged into one, which bounds the memory and how long others wait for the lock."""
MERGES = 8
"""Most merges at once, for the same reason; the next call goes on."""


def compact_grown(connection: duckdb.DuckDBPyConnection, folder: Path) -> int:
    """Merge parts of which there are many; returns how many were merged.

    Small ones become medium ones, and these become large ones, which stay: a row is written three times at most.

    Args:
        connection: the only one that writes, so that no process ingests meanwhile; appending is not disturbed.
        folder: the journal.

    Raises:
        WriteError: if the disk is full; nothing is lost, and what was merged before counts.
    """
    n = 0
    for _, names in zip(range(MERGES), _crowded(connection, folder), strict=False):
        merge_parts(connection, folder, names[0].split("-")[1], names)
        n += len(names)
    return n


def merge_parts(connection: duckdb.DuckDBPyConnection, folder: Path, table: str, names: Sequence[str]) -> None:
    """Merge intact parts of a table, oldest first, into one.

    The new part is on disk before the database lists it, and the database lists it before the old parts are deleted. Both
    hold the same rows, so ingesting either again adds nothing.
    """
    footers = {folder / name: footer(folder / name) for name in names}
    rows = in_schema(connection, table, *rows_of_parts(table, footers))
    # an older copy of the database may list parts that were replaced long ago
    replaced = [*names, *(old for end in footers.values() for old in end.replaced)]
    time_text = names[0].split("-")[0]  # the oldest part's
    new = journal.write_part(folder, table, rows, time_text, replaced).name
    connection.execute("begin")
    connection.execute("insert into parts values (?, ?, ?, 0)", [new, table, rows.num_rows])
    replace_parts(connection, names, new)
    connection.execute("commit")
    try:
        for name in names:
            (folder / name).unlink()
        sync_folder(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _crowded(connection: duckdb.DuckDBPyConnection, folder: Path) -> Iterator[list[str]]:
    """Parts to merge into one, the oldest of their table and size; looked up when the last ones are merged."""
    of_size = "n_rows > ? and n_rows <= ?"
    for least, most in SIZES:
        query = f"select table_name from parts where {of_size} group by all having count(*) > ? order by all"
        for (table,) in connection.execute(query, [least, most, MANY]).fetchall():
            query = f"select name, n_rows from parts where table_name = ? and {of_size} order by name"
            while True:
                parts = connection.execute(query, [table, least, most]).fetchall()
                if len(parts) <= MANY:
                    break
                names, n_rows = [], 0
                for name, n in parts[:PARTS]:
                    n_rows += n
                    if n_rows > ROWS:
                        break
                    if damage(folder / name) is None:  # `check` names the others, and they stay as they are
                        names.append(name)
                if len(names) < 2:
                    break
                yield names
