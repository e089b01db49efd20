"""Merge all journal parts into one per table."""

from .. import journal
from ..compaction import merge_parts
from ..ingest import ingested_parts
from ..pairstore import PairStore
from ..parts import has_checksum, refuse_damaged


def compact(store: PairStore) -> tuple[int, int]:
    """Number of parts before and after."""
    store.ingest()
    with store.session(write=True) as connection:  # no process ingests meanwhile; appending is not disturbed
        parts = journal.parts(store.journal)
        ingested = ingested_parts(connection)
        for table in journal.TABLES:
            names = [name for name, part_table in parts.items() if part_table == table and name in ingested]
            if len(names) > 1 or not all(map(has_checksum, names)):
                refuse_damaged(store.journal, names)
                merge_parts(connection, store.journal, table, names)
    return len(parts), len(journal.parts(store.journal))
