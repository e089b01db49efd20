"""Preference data sets into a store: a reader gives batches of rows, a layout makes records of them, one loop keeps them."""

from .config import ImportConfig
from .formats import open_source
from .run import import_pairs, refuse_bad

__all__ = ["ImportConfig", "import_pairs", "open_source", "refuse_bad"]
