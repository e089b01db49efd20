"""Whether a folder is a store, or can become one."""

from typing import TYPE_CHECKING

from ..core.errors import UsageError, reading
from ..core.files import refuse_unwritable
from .rebuild import TEMPORARY

if TYPE_CHECKING:
    from .pairstore import PairStore

FOLDERS = ("journal", "images", "cache")


def exists_or_is_free(store: "PairStore") -> bool:
    """True if the store exists, False if it can be created.

    Raises:
        UsageError: if the folder holds something else.
    """
    with reading(store.path):
        # listed before the check for a store, since another process may be creating one
        names = {entry.name for entry in store.path.iterdir()} if store.path.is_dir() else set()
        exists = store.exists()
    # an interrupted creation leaves folders, and half a database under a temporary name
    foreign = {name for name in names - {*FOLDERS, "locks", "store.lock"} if not name.startswith(TEMPORARY)}
    if foreign and not exists:
        raise UsageError(f"{store.path} exists and is not a store; name another folder")
    return exists


def refuse_uncreatable(store: "PairStore") -> None:
    """Check that a store can be created, before anything slow is done for it.

    Raises:
        UsageError, WriteError: if its folder holds something else, or cannot be written.
    """
    if not exists_or_is_free(store):
        refuse_unwritable(store.path)
