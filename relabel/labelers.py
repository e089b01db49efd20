"""How a labeler decides, as the store keeps it: a labeler's name means one thing."""

import json
from collections.abc import Sequence

from ..core.ids import canonical
from ..store import PairStore, UsageError
from .config import RelabelConfig
from .scorers.registry import Scorer, identity

_RENAMED = {"shares": "scorer_weights", "pairs": "select"}  # as 0.1 wrote them


def default_labeler(rule: str, scorers: Sequence[Scorer]) -> str:
    names = [scorer.name for scorer in scorers]
    return names[0] if rule == "single" else f"{rule}:{'+'.join(names)}"


def labeler_exists(store: PairStore, labeler: str, config: RelabelConfig, scorers: Sequence[Scorer]) -> bool:
    """
    Raises:
        UsageError: if it exists and decides in another way.
    """
    rows = store.rows("select config from labelers where labeler = ?", [labeler])
    if not rows:
        return False
    stored, own = json.loads(rows[0][0]), _config_json(config, scorers)
    if {_RENAMED.get(name, name): value for name, value in stored.items()} != own:
        raise UsageError(
            f"the labeler {labeler!r} exists and decides by {canonical(stored)}, not by {canonical(own)}; "
            "give --labeler another name"
        )
    return True


def add_labeler(store: PairStore, labeler: str, config: RelabelConfig, scorers: Sequence[Scorer]) -> None:
    """Add a labeler to the journal if the store has none of that name. Called with its first labels: a run that ends
    before it has any leaves no name behind.

    Raises:
        UsageError: if it exists and decides in another way.
    """
    if not labeler_exists(store, labeler, config, scorers):
        kind = "ai" if len(scorers) == 1 else "ensemble"
        row = {"labeler": labeler, "kind": kind, "config": canonical(_config_json(config, scorers))}
        store.append("labelers", [row])


def _config_json(config: RelabelConfig, scorers: Sequence[Scorer]) -> dict:
    """What decides the labels; settings at their defaults are left out, except for the tie band."""
    optional = {
        "tie_quantile": config.tie_quantile,
        "scorer_weights": config.scorer_weights,
        "select": "" if config.select == "all" else config.select,
        "temperature": config.temperature,
        "fit_temperature": config.fit_temperature,
    }
    return {
        "rule": config.rule,
        "scorers": [identity(scorer) for scorer in scorers],
        "tie_band": config.tie_band,
        **{name: value for name, value in optional.items() if value},
    }
