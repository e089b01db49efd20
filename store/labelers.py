"""Which labelers of a store have labels, and what to say of one that has none."""

import shlex

from ..core.errors import UsageError
from .pairstore import PairStore

HUMAN = "human:"
"""What the names of people begin with."""
_OF_TRAINING = (
    "select distinct l.labeler from labels l join pairs p using (pair_id) where p.source <> 'eval' order by all"
)
_OF_ANY = "select distinct labeler from labels order by starts_with(labeler, 'eval:'), labeler"


def labelers_with_labels(store: PairStore) -> list[str]:
    """Of any pairs; the labelers of evaluations come last."""
    return [name for (name,) in store.rows(_OF_ANY)]


def labelers_to_train_on(store: PairStore) -> list[str]:
    """Those with labels of pairs that are not of an evaluation."""
    return [name for (name,) in store.rows(_OF_TRAINING)]


def require_training_labels(store: PairStore, labeler: str) -> None:
    """
    Raises:
        UsageError: if a labeler has no labels, or only of pairs of evaluations, which are never trained on or exported.
    """
    if _exists(store, "labels join pairs using (pair_id)", labeler, " and source <> 'eval'"):
        return
    if _exists(store, "labels", labeler):
        problem = f"{labeler} has labels only of evaluation pairs, which are never trained on or exported"
    elif _exists(store, "labelers", labeler):
        problem = f"the labeler {labeler!r} has no labels"
    else:
        problem = f"unknown labeler {labeler!r}"
    names = labelers_to_train_on(store)
    cures = [*how_to_label(store, labeler), *[f"choose from {', '.join(names)}"] * bool(names)]
    raise UsageError(f"{problem}; {', or '.join(cures) or '`prefloop relabel` makes labels'}")


def how_to_label(store: PairStore, labeler: str) -> list[str]:
    """The command with which a person labels, if the labeler is one; else nothing."""
    name = labeler.removeprefix(HUMAN)
    if not labeler.startswith(HUMAN) or not name:
        return []
    return [
        f"`prefloop label --labeler {shlex.quote(name)} --store {shlex.quote(str(store.path))}` opens a page to label on"
    ]


def _exists(store: PairStore, table: str, labeler: str, condition: str = "") -> bool:
    return bool(store.rows(f"select 1 from {table} where labeler = ?{condition} limit 1", [labeler]))
