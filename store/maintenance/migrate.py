"""Migrate a store from an older schema: the journal stays as it is, and the database is built from it again."""

from ..pairstore import PairStore
from ..rebuild import SCHEMA_VERSION
from ..verify import refuse_newer


def migrate(store: PairStore) -> tuple[int, int]:
    """Schema version before and after.

    Raises:
        IntegrityError: if a newer prefloop made the store, or journal parts are damaged or missing.
    """
    version = store.schema_version()
    refuse_newer(store, version)
    if version < SCHEMA_VERSION:
        store.rebuild()
    return version, SCHEMA_VERSION
