"""Evaluations in the store: which images each compared. An evaluation's id follows from its generations."""

from collections.abc import Iterable, Mapping
from uuid import UUID

from ..core.errors import UsageError
from ..core.ids import canonical, content_id
from .pairstore import PairStore

_MIN_PREFIX = 4
# The evaluations of the runs that are done, the newest run first.
_RUNS = """
    select (summary ->> '$.evaluation_id')::uuid as evaluation_id, config ->> '$.name' as name
    from runs where kind = 'eval' and summary ->> '$.evaluation_id' is not null order by started desc"""


def evaluation_id(generations: Iterable[UUID]) -> UUID:
    """The id of an evaluation of these generations."""
    return content_id(b"evaluation\0" + b"".join(sorted(generation.bytes for generation in generations)))


def add_evaluation(store: PairStore, generations: Mapping[UUID, tuple[int, Mapping[str, str]]]) -> UUID:
    """Add an evaluation; the same one again adds nothing.

    Args:
        generations: of every model, with the place of the prompt among the prompts, from 0, and its tags.

    Returns:
        The evaluation's id.
    """
    identity = evaluation_id(generations)
    rows = (
        {"evaluation_id": identity, "generation_id": generation, "place": place, "tags": canonical(dict(tags))}
        for generation, (place, tags) in generations.items()
    )
    store.append_new("evaluations", rows)
    return identity


def evaluations(store: PairStore) -> list[tuple[UUID, str]]:
    """The evaluations of the store and what they are called, the newest first: the last --name, or the first digits of the id."""
    names: dict[UUID, str | None] = {}
    for identity, name in store.rows(_RUNS):
        names[identity] = names.get(identity) or name
    return [(identity, name or identity.hex[:12]) for identity, name in names.items()]


def find_evaluation(store: PairStore, name: str) -> UUID:
    """The evaluation that a name means: the last one with that --name, or the one whose id begins so.

    Raises:
        UsageError: if there is none, or several ids begin so; it lists those there are.
    """
    known = store.rows(_RUNS)
    for identity, given in known:
        if name == given:
            return identity
    digits = name.replace("-", "").lower()
    ids = list(dict.fromkeys(identity for identity, _ in known))
    found = [identity for identity in ids if len(digits) >= _MIN_PREFIX and identity.hex.startswith(digits)]
    if len(found) == 1:
        return found[0]
    names = list(dict.fromkeys(given or identity.hex[:12] for identity, given in known))
    if not names:
        raise UsageError(f"{store.path} holds no evaluation; `prefloop eval` makes one")
    raise UsageError(
        f"{'several evaluations begin with' if found else 'no evaluation is named'} {name!r}; choose from {', '.join(names)}"
    )
