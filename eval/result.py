"""What an evaluation found: win rates by judge and by tag, which of them are independent evidence, and the models' ranks."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from ..core.errors import BadDataError
from ..core.json import plain
from ..core.stats import Floats, prompt_means
from ..generate.defaults import training_chain
from ..models.model import Model
from ..models.trained_prompts import read_trained_prompts
from ..store import prompt_id
from .compare import Comparison, compare, compare_votes, wins_of
from .config import HUMAN, EvalConfig
from .lineup import Lineup
from .rank import Rank, rank

MAX_TAG_VALUES = 40  # a tag with more values does not divide the prompts into groups worth comparing

ByJudge = dict[str, Comparison | None]
"""Judge → comparison; None if no pair has two finite scores, or a label."""


@dataclass(frozen=True)
class ImagePair:
    """The two images of one prompt and index, one of each model, and what the judges say of them."""

    prompt: str
    tags: dict[str, str]
    index: int
    base: UUID
    tuned: UUID
    scores: dict[str, tuple[float, float]]
    """Scorer's name → score of the base's and of the tuned model's image; nan without a score."""
    votes: float = float("nan")
    """Share of people's labels that chose the tuned model's image, ties one half; nan without a label."""


@dataclass(frozen=True)
class Background:
    """What two models were trained with, as far as it matters for comparing them."""

    in_sample: set[str]
    """Scorers whose labels trained one of the two. People are never in it: their labels are of other images."""
    n_trained_prompts: int | None
    """Prompts of the evaluation that the tuned model was trained on; None if that is not known."""


@dataclass(frozen=True)
class ComparedModels:
    """Two models of an evaluation, and what every judge says of them."""

    tuned: int
    base: int
    """Indices in the lineup."""
    pairs: list[ImagePair]
    overall: dict[str, Comparison]
    without_result: list[str]
    """Judges that gave no pair two finite scores, or a label; they are not in `overall`."""
    by_tag: dict[str, dict[str, ByJudge]]
    """Tag → value → comparisons."""
    background: Background


@dataclass(frozen=True)
class Evaluation:
    config: EvalConfig
    lineup: Lineup
    comparisons: list[ComparedModels]
    """The first named model against its baseline is the first."""
    ranks: dict[str, list[Rank]]
    """Judge → the models from the strongest to the weakest; empty if there are only two."""


def evaluation_of(
    config: EvalConfig,
    lineup: Lineup,
    pairs: Sequence[list[ImagePair]],
    judges: Sequence[str],
    backgrounds: Sequence[Background],
) -> Evaluation:
    """Compare the models by every judge, over all pairs and by tag.

    Args:
        pairs: of each comparison of the lineup; in each the same prompts and indices in the same order.
        backgrounds: of each comparison.

    Raises:
        BadDataError: if no judge has a result for a comparison.
    """
    comparisons = []
    for (tuned, base), of_two, background in zip(lineup.comparisons, pairs, backgrounds, strict=True):
        by_judge = _compare(of_two, judges, config.n_resamples)
        overall = {name: comparison for name, comparison in by_judge.items() if comparison is not None}
        if not overall and set(judges) != {HUMAN}:  # people have not answered yet
            raise BadDataError(
                f"{', '.join(judges)} gave no finite score on both images of any of the {len(of_two)} pairs"
            )
        without = [name for name in judges if name not in overall]
        by_tag = _compare_by_tag(of_two, list(overall), config.n_resamples)
        comparisons.append(ComparedModels(tuned, base, of_two, overall, without, by_tag, background))
    many = len(lineup.names) > 2
    ranks = {name: _ranks(lineup, pairs, name) for name in judges if many and _has_result(pairs, name)}
    return Evaluation(config=config, lineup=lineup, comparisons=comparisons, ranks=ranks)


def background_of(tuned: Model, base: Model, pairs: Sequence[ImagePair]) -> Background:
    return Background(training_scorers(tuned) | training_scorers(base), count_trained_prompts(tuned, pairs))


def summary_of(evaluation: Evaluation) -> dict:
    """The evaluation as JSON; an interval that does not exist is null.

    The first comparison is at the top; the others, likewise, are in other_comparisons.
    """
    lineup = evaluation.lineup
    first, *others = (_summary(lineup, compared) for compared in evaluation.comparisons)
    bases = {tuned: lineup.names[base] for tuned, base in lineup.baselines.items()}
    return plain(
        first
        | {
            "models": [
                {"model": name, "model_id": str(identity), "baseline": bases.get(place)}
                for place, (name, identity) in enumerate(zip(lineup.names, lineup.ids, strict=True))
            ],
            "other_comparisons": others,
            "ranks": {
                judge: [asdict(place) | {"model": lineup.names[place.model]} for place in ranks]
                for judge, ranks in evaluation.ranks.items()
            },
        }
    )


def _summary(lineup: Lineup, compared: ComparedModels) -> dict[str, Any]:
    def row(name: str, comparison: Comparison | None) -> dict | None:
        in_sample = name in compared.background.in_sample
        return None if comparison is None else asdict(comparison) | {"in_sample": in_sample}

    def rows(by_judge: ByJudge) -> dict:
        return {name: row(name, comparison) for name, comparison in by_judge.items()}

    return {
        "model": lineup.names[compared.tuned],
        "baseline": lineup.names[compared.base],
        "model_id": str(lineup.ids[compared.tuned]),
        "base_model_id": str(lineup.ids[compared.base]),
        "n_prompts": len({pair.prompt for pair in compared.pairs}),
        "n_pairs": len(compared.pairs),
        "n_trained_prompts": compared.background.n_trained_prompts,
        "scorers": rows({**compared.overall}),
        "without_result": compared.without_result,
        "tags": {
            tag: {value: rows(by_judge) for value, by_judge in values.items()}
            for tag, values in compared.by_tag.items()
        },
    }


def _wins(pairs: Sequence[ImagePair], judge: str) -> Floats:
    """Of the tuned model, 0 to 1, (N,); nan where the judge says nothing."""
    if judge == HUMAN:
        return np.array([pair.votes for pair in pairs])
    base, tuned = np.array([pair.scores[judge] for pair in pairs], np.float64).T
    return np.where(np.isfinite(base) & np.isfinite(tuned), wins_of(base, tuned), np.nan)


def _has_result(pairs: Sequence[list[ImagePair]], judge: str) -> bool:
    return any(np.isfinite(_wins(of_both, judge)).any() for of_both in pairs)


def _ranks(lineup: Lineup, pairs: Sequence[list[ImagePair]], judge: str) -> list[Rank]:
    prompts = _numbered(pairs[0])
    columns = []
    for of_both in pairs:
        wins = _wins(of_both, judge)
        known = np.isfinite(wins)
        column = np.full(prompts.max() + 1, np.nan)
        if known.any():
            column[np.unique(prompts[known])] = prompt_means(wins[known, None], prompts[known])[:, 0]
        columns.append(column)
    return rank(np.stack(columns, axis=1), lineup.comparisons, len(lineup.names))


def _numbered(pairs: Sequence[ImagePair]) -> np.ndarray:
    """The number of each pair's prompt, (N,)."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(pair.prompt, len(numbers)) for pair in pairs])


def _compare(pairs: list[ImagePair], judges: Sequence[str], n_resamples: int) -> ByJudge:
    prompts = _numbered(pairs)
    comparisons: ByJudge = {}
    for name in judges:
        wins = _wins(pairs, name)
        if not np.isfinite(wins).any():
            comparisons[name] = None
        elif name == HUMAN:
            comparisons[name] = compare_votes(wins, prompts, n_resamples)
        else:
            base, tuned = np.array([pair.scores[name] for pair in pairs], np.float64).T
            comparisons[name] = compare(base, tuned, prompts, n_resamples)
    return comparisons


def _compare_by_tag(pairs: list[ImagePair], judges: Sequence[str], n_resamples: int) -> dict[str, dict[str, ByJudge]]:
    groups: dict[str, dict[str, list[ImagePair]]] = defaultdict(lambda: defaultdict(list))
    for pair in pairs:
        for tag, value in pair.tags.items():
            groups[tag][value].append(pair)
    return {
        tag: {value: _compare(group, judges, n_resamples) for value, group in sorted(values.items())}
        for tag, values in groups.items()
        if 1 < len(values) <= MAX_TAG_VALUES
    }


def training_scorers(model: Model) -> set[str]:
    """Names of the scorers whose labels trained the model, or any model it was trained on."""
    labelers = [
        labeler for link in training_chain(model) for labeler in (link.trained_with or {}).get("labelers", {}).values()
    ]
    return {scorer.split("@")[0] for labeler in labelers for scorer in labeler.get("scorers", [])}


def count_trained_prompts(tuned: Model, pairs: Sequence[ImagePair]) -> int | None:
    """Number of prompts that the model, or any model it was trained on, was trained on; None if that is not known."""
    *results, root = training_chain(tuned)
    trained = [read_trained_prompts(Path(model.source)) for model in results]
    if not results or root.trained_with is not None or None in trained:  # a foreign model, or a chain that breaks off
        return None
    known = set().union(*(prompts for prompts in trained if prompts is not None))
    return len({pair.prompt for pair in pairs if prompt_id(pair.prompt) in known})
