"""Draw with both models, score the pictures, and say who wins."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import UUID

import numpy as np

from ..core.errors import BadDataError
from ..core.files import refuse_report_over_others
from ..core.json import plain
from ..core.signals import StopSignal
from ..generate.defaults import describe_sampling, training_chain
from ..generate.prompts import read_prompts
from ..generate.stage import Plan, generate_missing, image_ids, plan_generations
from ..models.resolve import Model, find_model
from ..models.trained_prompts import read_trained_prompts
from ..relabel.config import RelabelConfig
from ..relabel.labels import write_labels
from ..relabel.scorers.registry import Scorer, identity, load_scorers
from ..relabel.scores import score_images, unscored_images
from ..store import PairStore, prompt_id
from ..store.pairstore import new_pair
from ..store.runs import run
from .baseline import baseline, decided
from .compare import Comparison, compare
from .config import EvalConfig

MOST_TAG_VALUES = 40  # a tag with more values says nothing about groups of prompts


@dataclass(frozen=True)
class Side:
    """The two pictures of one prompt and index, and what each scorer gave them."""

    prompt: str
    tags: dict[str, str]
    index: int
    base: UUID
    tuned: UUID
    scores: dict[str, tuple[float, float]]
    """Scorer's name → score of the base's and the tuned model's picture; nan where there is none."""


@dataclass(frozen=True)
class Evaluation:
    config: EvalConfig
    sides: list[Side]
    overall: dict[str, Comparison]
    without_result: list[str]
    """Scorers that gave no pair two finite scores; they are not in `overall`."""
    by_tag: dict[str, dict[str, dict[str, Comparison | None]]]
    """Tag → value → scorer's name → comparison; None where no pair of the group has two finite scores."""
    in_sample: set[str]
    """Scorers whose labels trained the tuned model."""
    n_trained_prompts: int | None
    """Prompts of this evaluation that the tuned model was trained on; None where that is not known."""
    run_id: UUID


def evaluate(config: EvalConfig, store: PairStore) -> dict:
    """Compare a tuned model with another on the same prompts and noise, and write a report.

    Returns:
        n_prompts, n_pairs, report (its folder), scorers (name → win_rate, low, high, base_mean, tuned_mean, diff,
        diff_low, diff_high, in_sample …), without_result (scorers that gave no finite score), tags, n_trained_prompts,
        sampler (the settings that both models drew with).

    Raises:
        UsageError: where no baseline is known, the two cannot be compared, or the report would overwrite other files.
        BadDataError: where no scorer has a result.
    """
    scorers = load_scorers(config.scorers, config.checkpoints, config.device)
    tuned = find_model(config.model)
    base = baseline(config, tuned)
    config = decided(config, base, tuned, store)
    prompts = read_prompts(config.prompts or "", config.limit)
    plans = [plan_generations(config.drawing(model.name), model, prompts, store) for model in (base, tuned)]
    from .report import FILES, PAGE, write_report

    if config.report is not None:
        refuse_report_over_others(Path(config.report), PAGE, *FILES)
    with (
        store.stage_lock("eval", tuned.model_id.hex[:16]),
        StopSignal().listening() as stop,
        run(store, "eval", config) as this,
    ):
        for planned in plans:
            generate_missing(planned, store, this, stop)
        pairs = _paired(plans[0], plans[1], store, this.run_id)
        images = sorted({(prompt_id(p.prompt), image) for p in pairs for image in (p.base, p.tuned)})
        for scorer in scorers:
            items = unscored_images(store, identity(scorer), images)
            score_images(store, scorer, items, batch_size=max(config.batch_size, 64), run_id=this.run_id, stop=stop)
            labeler = f"eval:{identity(scorer)}"
            write_labels(store, labeler, RelabelConfig(), [scorer], ("eval",), this.run_id)
            stop.check(f"the scores of {scorer.name} are in {store.path}")
        sides = _scored(pairs, scorers, store)
        with stop.at_once():
            evaluation = _compared_models(config, tuned, sides, [scorer.name for scorer in scorers], this.run_id)
        folder = Path(config.report) if config.report else store.path / "reports" / this.run_id.hex[:12]
        result = summary_of(evaluation) | {
            "model_id": str(tuned.model_id),
            "base_model_id": str(base.model_id),
            "prompts": config.prompts,
            "sampler": plans[1].config.sampling(),
            "settings": describe_sampling(plans[1].config),
            "report": str(folder),
        }
        write_report(evaluation, result, store, folder)
        this.summary |= result
    return plain(result)


def _compared_models(config: EvalConfig, tuned: Model, sides: list[Side], names: list[str], run_id: UUID) -> Evaluation:
    overall = _compared(sides, names, config.n_resamples)
    there = {name: comparison for name, comparison in overall.items() if comparison is not None}
    if not there:
        raise BadDataError(f"{', '.join(names)} gave no finite score on both images of any of the {len(sides)} pairs")
    return Evaluation(
        config=config,
        sides=sides,
        overall=there,
        without_result=[name for name in names if name not in there],
        by_tag=_by_tag(sides, list(there), config.n_resamples),
        in_sample=_training_scorers(tuned),
        n_trained_prompts=_trained_prompts(tuned, sides),
        run_id=run_id,
    )


def summary_of(evaluation: Evaluation) -> dict:
    def row(name: str, comparison: Comparison | None) -> dict | None:
        return None if comparison is None else asdict(comparison) | {"in_sample": name in evaluation.in_sample}

    return plain(
        {
            "model": evaluation.config.model,
            "against": evaluation.config.baseline,
            "n_prompts": len({side.prompt for side in evaluation.sides}),
            "n_pairs": len(evaluation.sides),
            "n_trained_prompts": evaluation.n_trained_prompts,
            "scorers": {name: row(name, comparison) for name, comparison in evaluation.overall.items()},
            "without_result": evaluation.without_result,
            "tags": {
                tag: {value: {n: row(n, c) for n, c in by_scorer.items()} for value, by_scorer in values.items()}
                for tag, values in evaluation.by_tag.items()
            },
        }
    )


def _paired(base: Plan, tuned: Plan, store: PairStore, run_id: UUID) -> list[Side]:
    """The pictures of both models, prompt by prompt and index by index; their pairs go into the store."""
    tags = {prompt.text: prompt.tags for prompt in base.prompts}
    base_images, tuned_images = image_ids(base.generations, store), image_ids(tuned.generations, store)
    sides, pairs = [], {}
    for one, other in zip(base.generations, tuned.generations, strict=True):
        first, second = base_images[one.generation_id], tuned_images[other.generation_id]
        sides.append(Side(one.prompt, tags[one.prompt], one.index, first, second, {}))
        pair = new_pair(prompt_id(one.prompt), first, second, "eval", run_id)
        if pair is not None:
            pairs[pair["pair_id"]] = pair
    store.append_new("pairs", pairs.values())
    store.ingest()
    return sides


def _scored(sides: list[Side], scorers: list[Scorer], store: PairStore) -> list[Side]:
    found: dict[str, dict[tuple[UUID, UUID], float]] = {}
    for scorer in scorers:
        rows = store.rows("select prompt_id, image_id, score from scores where scorer = ?", [identity(scorer)])
        found[scorer.name] = {(prompt, image): score for prompt, image, score in rows}
    nan = float("nan")
    complete = []
    for side in sides:
        prompt = prompt_id(side.prompt)
        scores = {
            name: (of.get((prompt, side.base), nan), of.get((prompt, side.tuned), nan)) for name, of in found.items()
        }
        complete.append(replace(side, scores=scores))
    return complete


def _compared(sides: list[Side], names: list[str], n_resamples: int) -> dict[str, Comparison | None]:
    """By scorer; None where no pair has two finite scores."""
    numbers: dict[str, int] = {}
    prompts = np.array([numbers.setdefault(side.prompt, len(numbers)) for side in sides])
    compared = {}
    for name in names:
        base, tuned = np.array([side.scores[name] for side in sides]).T
        scored = bool((np.isfinite(base) & np.isfinite(tuned)).any())
        compared[name] = compare(base, tuned, prompts, n_resamples) if scored else None
    return compared


def _by_tag(
    sides: list[Side], names: list[str], n_resamples: int
) -> dict[str, dict[str, dict[str, Comparison | None]]]:
    groups: dict[str, dict[str, list[Side]]] = defaultdict(lambda: defaultdict(list))
    for side in sides:
        for tag, value in side.tags.items():
            groups[tag][value].append(side)
    return {
        tag: {value: _compared(of, names, n_resamples) for value, of in sorted(values.items())}
        for tag, values in groups.items()
        if 1 < len(values) <= MOST_TAG_VALUES
    }


def _training_scorers(tuned: Model) -> set[str]:
    """Scorers whose labels trained the model, or what it was trained on."""
    labelers = [
        one for model in training_chain(tuned) for one in (model.trained_with or {}).get("labelers", {}).values()
    ]
    return {key.split("@")[0] for labeler in labelers for key in labeler.get("scorers", [])}


def _trained_prompts(tuned: Model, sides: list[Side]) -> int | None:
    """How many of the prompts the model was trained on, or what it was trained on, was."""
    *results, first = training_chain(tuned)
    told = [read_trained_prompts(Path(model.source)) for model in results]
    if not results or first.trained_with is not None or None in told:  # a foreign model, or a chain that breaks off
        return None
    known = set().union(*(prompts for prompts in told if prompts is not None))
    return len({side.prompt for side in sides if prompt_id(side.prompt) in known})


def as_json(result: dict) -> str:
    return json.dumps(result, allow_nan=False)
