"""What an evaluation found: win rates by scorer and by tag, and which of them are independent evidence."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import UUID

import numpy as np

from ..core.errors import BadDataError
from ..core.json import plain
from ..generate.defaults import training_chain
from ..models.resolve import Model
from ..models.trained_prompts import read_trained_prompts
from ..store import prompt_id
from .compare import Comparison, compare
from .config import EvalConfig

MAX_TAG_VALUES = 40  # a tag with more values does not divide the prompts into groups worth comparing

ByScorer = dict[str, Comparison | None]
"""Scorer's name → comparison; None if no pair has two finite scores."""


@dataclass(frozen=True)
class ImagePair:
    """The two images of one prompt and index, one of each model, and their scores."""

    prompt: str
    tags: dict[str, str]
    index: int
    base: UUID
    tuned: UUID
    scores: dict[str, tuple[float, float]]
    """Scorer's name → score of the base's and of the tuned model's image; nan without a score."""


@dataclass(frozen=True)
class Evaluation:
    config: EvalConfig
    pairs: list[ImagePair]
    overall: dict[str, Comparison]
    without_result: list[str]
    """Scorers that gave no pair two finite scores; they are not in `overall`."""
    by_tag: dict[str, dict[str, ByScorer]]
    """Tag → value → comparisons."""
    in_sample: set[str]
    """Scorers whose labels trained the tuned model."""
    n_trained_prompts: int | None
    """Prompts of this evaluation that the tuned model was trained on; None if that is not known."""


def evaluation_of(config: EvalConfig, tuned: Model, pairs: list[ImagePair], scorers: Sequence[str]) -> Evaluation:
    """Compare the two models by every scorer, over all pairs and by tag.

    Raises:
        BadDataError: if no scorer has a result.
    """
    by_scorer = _compare(pairs, scorers, config.n_resamples)
    overall = {name: comparison for name, comparison in by_scorer.items() if comparison is not None}
    if not overall:
        raise BadDataError(f"{', '.join(scorers)} gave no finite score on both images of any of the {len(pairs)} pairs")
    return Evaluation(
        config=config,
        pairs=pairs,
        overall=overall,
        without_result=[name for name in scorers if name not in overall],
        by_tag=_compare_by_tag(pairs, list(overall), config.n_resamples),
        in_sample=training_scorers(tuned),
        n_trained_prompts=count_trained_prompts(tuned, pairs),
    )


def summary_of(evaluation: Evaluation) -> dict:
    """The evaluation as JSON; an interval that does not exist is null."""

    def row(name: str, comparison: Comparison | None) -> dict | None:
        return None if comparison is None else asdict(comparison) | {"in_sample": name in evaluation.in_sample}

    def rows(by_scorer: ByScorer) -> dict:
        return {name: row(name, comparison) for name, comparison in by_scorer.items()}

    return plain(
        {
            "model": evaluation.config.model,
            "baseline": evaluation.config.baseline,
            "n_prompts": len({pair.prompt for pair in evaluation.pairs}),
            "n_pairs": len(evaluation.pairs),
            "n_trained_prompts": evaluation.n_trained_prompts,
            "scorers": rows({**evaluation.overall}),
            "without_result": evaluation.without_result,
            "tags": {
                tag: {value: rows(by_scorer) for value, by_scorer in values.items()}
                for tag, values in evaluation.by_tag.items()
            },
        }
    )


def _compare(pairs: list[ImagePair], scorers: Sequence[str], n_resamples: int) -> ByScorer:
    numbers: dict[str, int] = {}
    prompts = np.array([numbers.setdefault(pair.prompt, len(numbers)) for pair in pairs])
    comparisons: ByScorer = {}
    for name in scorers:
        base, tuned = np.array([pair.scores[name] for pair in pairs]).T
        has_scores = bool((np.isfinite(base) & np.isfinite(tuned)).any())
        comparisons[name] = compare(base, tuned, prompts, n_resamples) if has_scores else None
    return comparisons


def _compare_by_tag(pairs: list[ImagePair], scorers: Sequence[str], n_resamples: int) -> dict[str, dict[str, ByScorer]]:
    groups: dict[str, dict[str, list[ImagePair]]] = defaultdict(lambda: defaultdict(list))
    for pair in pairs:
        for tag, value in pair.tags.items():
            groups[tag][value].append(pair)
    return {
        tag: {value: _compare(group, scorers, n_resamples) for value, group in sorted(values.items())}
        for tag, values in groups.items()
        if 1 < len(values) <= MAX_TAG_VALUES
    }


def training_scorers(tuned: Model) -> set[str]:
    """Names of the scorers whose labels trained the model, or any model it was trained on."""
    labelers = [
        labeler
        for model in training_chain(tuned)
        for labeler in (model.trained_with or {}).get("labelers", {}).values()
    ]
    return {scorer.split("@")[0] for labeler in labelers for scorer in labeler.get("scorers", [])}


def count_trained_prompts(tuned: Model, pairs: list[ImagePair]) -> int | None:
    """Number of prompts that the model, or any model it was trained on, was trained on; None if that is not known."""
    *results, root = training_chain(tuned)
    trained = [read_trained_prompts(Path(model.source)) for model in results]
    if not results or root.trained_with is not None or None in trained:  # a foreign model, or a chain that breaks off
        return None
    known = set().union(*(prompts for prompts in trained if prompts is not None))
    return len({pair.prompt for pair in pairs if prompt_id(pair.prompt) in known})
