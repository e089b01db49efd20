"""Seeds that follow from what they are for, and from nothing else."""

import numpy as np
from numpy.typing import NDArray

from ..core.id_columns import Keys, content_keys, id_texts, key_bytes, with_affixes
from ..core.ids import canonical, content_id


def derived_seed(*parts: object) -> int:
    """A seed that follows from its parts alone, below 2**63."""
    return content_id(canonical([str(part) for part in parts]).encode()).int >> 65


def derived_seeds(*parts: object, ids: Keys) -> NDArray[np.uint64]:
    """`derived_seed` of these parts and each of the ids, (N,)."""
    prefix, suffix = canonical([*map(str, parts), "|"]).encode().rsplit(b"|", 1)
    rows = with_affixes(prefix, id_texts(ids), suffix)
    first = key_bytes(content_keys(rows))[:, :8]
    return np.ascontiguousarray(first).view(">u8").ravel().astype(np.uint64) >> np.uint64(1)
