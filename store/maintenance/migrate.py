"""Stores of older schemas: the journal stays as it is, and the database is made from it in the schema of today."""

from ...core.errors import IntegrityError
from ..pairstore import PairStore
from ..rebuild import SCHEMA_VERSION


def migrate(store: PairStore) -> tuple[int, int]:
    """Schema before and after.

    Raises:
        IntegrityError: where a newer prefloop made the store.
    """
    version = store.schema_version()
    if version > SCHEMA_VERSION:
        raise IntegrityError(
            f"the store {store.path} is of schema {version} and this prefloop knows {SCHEMA_VERSION}; update prefloop"
        )
    if version < SCHEMA_VERSION:
        store.rebuild()
    return version, SCHEMA_VERSION
