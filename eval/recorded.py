"""An evaluation as the store has it: its images, and what scorers and people said of them since."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import numpy as np

from ..core.errors import UsageError
from ..core.settings import settings_of
from ..store import PairStore, prompt_id
from ..store.evaluations import find_evaluation
from .config import HUMAN, RENAMED, EvalConfig
from .lineup import Lineup
from .people import votes_of
from .result import Background, ImagePair

_RUN = """
    select config, summary from runs
    where kind = 'eval' and status = 'done' and summary ->> '$.evaluation_id' = $evaluation
    order by started desc, run_id limit 1"""
_IMAGES = """
    select i.model_id, q.prompt, i.image_index, i.image_id, i.tags
    from evaluation_images i join prompts q using (prompt_id)
    where evaluation_id = $evaluation
    order by i.place, i.image_index"""
_ABOUT = ("evaluation_id", "name", "scorer_ids", "prompts", "sampling", "settings", "steps")

Recorded = tuple[EvalConfig, Lineup, list[list[ImagePair]], list[Background], dict[str, Any]]


def recorded(store: PairStore, name: str) -> Recorded:
    """Settings, models, images and training of an evaluation, from its last finished run.

    Returns:
        Besides them, the entries of its result that do not depend on the judges.

    Raises:
        UsageError: if the store does not have such an evaluation, or it never finished.
    """
    evaluation = find_evaluation(store, name)
    rows = store.rows(_RUN, {"evaluation": str(evaluation)})
    if not rows:
        raise UsageError(f"the evaluation {name} was never finished; repeat the command that began it")
    settings, result = map(json.loads, rows[0])
    # how many workers it had decides nothing, and Ray may be missing here
    given = {key: value for key, value in settings.items() if value is not None and key != "workers"}
    config = EvalConfig(**settings_of(f"the run of the evaluation {name}", given, EvalConfig, "eval", RENAMED))
    names = [place["model"] for place in result["models"]]
    ids = [UUID(place["model_id"]) for place in result["models"]]
    place_of = {model: place for place, model in enumerate(names)}
    compared = [result, *result["other_comparisons"]]
    lineup = Lineup(
        names,
        ids,
        [(place_of[c["model"]], place_of[c["baseline"]]) for c in compared],
        {p: place_of[m["baseline"]] for p, m in enumerate(result["models"]) if m["baseline"] is not None},
    )
    backgrounds = [
        Background({judge for judge, row in c["scorers"].items() if row["in_sample"]}, c["n_trained_prompts"])
        for c in compared
    ]
    about = {key: result[key] for key in _ABOUT} | {"left_out": result.get("left_out", {})}
    return config, lineup, _pairs(store, evaluation, lineup), backgrounds, about


def _pairs(store: PairStore, evaluation: UUID, lineup: Lineup) -> list[list[ImagePair]]:
    images: dict[UUID, list[tuple[str, int, UUID, dict]]] = {identity: [] for identity in lineup.ids}
    for model, prompt, index, image, tags in store.rows(_IMAGES, {"evaluation": evaluation}):
        images[model].append((prompt, index, image, json.loads(tags)))
    return [
        [
            ImagePair(prompt, tags, index, of_base, of_tuned, {})
            for (prompt, index, of_base, tags), (_, _, of_tuned, _) in zip(
                images[lineup.ids[base]], images[lineup.ids[tuned]], strict=True
            )
        ]
        for tuned, base in lineup.comparisons
    ]


def judgements(
    pairs: Sequence[Sequence[ImagePair]], store: PairStore, evaluation: UUID, scorer_ids: Mapping[str, str]
) -> list[list[ImagePair]]:
    """The pairs of each comparison with the scores and people's labels that the store has.

    Args:
        scorer_ids: scorer's name → name@revision.
    """
    votes, scores = votes_of(store, evaluation), {}
    for name, scorer in scorer_ids.items():
        rows = store.rows("select prompt_id, image_id, score from scores where scorer = ?", [scorer])
        scores[name] = {(prompt, image): score for prompt, image, score in rows}
    nan = float("nan")

    def judged(pair: ImagePair) -> ImagePair:
        prompt = prompt_id(pair.prompt)
        both = {
            name: (known.get((prompt, pair.base), nan), known.get((prompt, pair.tuned), nan))
            for name, known in scores.items()
        }
        return replace(pair, scores=both, votes=votes.get((prompt, pair.tuned, pair.base), nan))

    return [list(map(judged, of_two)) for of_two in pairs]


def judges_of(pairs: Iterable[Sequence[ImagePair]], scorers: Iterable[str], *, people: bool) -> list[str]:
    """The scorers, and people if they were asked or have labelled a pair."""
    labelled = any(np.isfinite(pair.votes) for of_two in pairs for pair in of_two)
    return [*scorers, *([HUMAN] if people or labelled else [])]
