"""Draw with both models, score the pictures, and say who wins."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import UUID

import numpy as np

from ..generate.draw import Plan, draw, images_of, plan
from ..relabel.config import RelabelConfig
from ..relabel.label import describe_labeler
from ..relabel.registry import Scorer, identity, load_scorers
from ..relabel.scoring import score_images, unscored_images
from ..relabel.writing import write_labels
from ..store import PairStore, UsageError, prompt_id
from ..store.pairstore import new_pair
from ..store.runs import StopSignal, plain, run
from .config import EvalConfig
from .winrate import Comparison, compare

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
    by_tag: dict[str, dict[str, dict[str, Comparison]]]
    """Tag → value → scorer's name → comparison."""
    in_sample: set[str]
    """Scorers whose labels trained the tuned model."""
    n_trained_prompts: int
    """Prompts of this evaluation that the tuned model was trained on."""
    run_id: UUID


def evaluate(config: EvalConfig, store: PairStore) -> dict:
    """Compare a tuned model with another on the same prompts and noise, and write a report.

    Returns:
        n_prompts, n_pairs, report (its folder), scorers (name → win_rate, low, high, base_mean, tuned_mean, diff,
        diff_low, diff_high, in_sample …), tags, n_trained_prompts.
    """
    scorers = load_scorers(config.scorers, config.weights, config.device)
    plans = {model: plan(config.drawing(model), store) for model in (config.against, config.model)}
    if plans[config.against].model.model_id == plans[config.model].model.model_id:
        raise UsageError(f"{config.model} and {config.against} are the same model; name the tuned one with --model")
    from .report import write_report

    with (
        store.stage_lock("eval", plans[config.model].model.model_id.hex[:16]),
        StopSignal().listening() as stop,
        run(store, "eval", config) as this,
    ):
        for model, planned in plans.items():
            draw(planned, config.drawing(model), store, this, stop)
        pairs = _paired(plans[config.against], plans[config.model], store, this.run_id)
        images = sorted({(prompt_id(p.prompt), image) for p in pairs for image in (p.base, p.tuned)})
        for scorer in scorers:
            items = unscored_images(store, identity(scorer), images)
            score_images(store, scorer, items, batch_size=max(config.batch_size, 64), run_id=this.run_id, stop=stop)
            labeler = f"eval:{identity(scorer)}"
            describe_labeler(store, labeler, RelabelConfig(), [scorer])
            write_labels(store, labeler, RelabelConfig(), [scorer], ("eval",), this.run_id)
        sides = _scored(pairs, scorers, store)
        trained = plans[config.model].model.trained_with or {}
        evaluation = Evaluation(
            config=config,
            sides=sides,
            overall=_compared(sides, [scorer.name for scorer in scorers], config.n_resamples),
            by_tag=_by_tag(sides, [scorer.name for scorer in scorers], config.n_resamples),
            in_sample=_training_scorers(trained),
            n_trained_prompts=_trained_prompts(trained, sides, store),
            run_id=this.run_id,
        )
        folder = Path(config.report) if config.report else store.path / "reports" / this.run_id.hex[:12]
        model_id = str(plans[config.model].model.model_id)
        result = summary_of(evaluation) | {"model_id": model_id, "report": str(folder)}
        write_report(evaluation, result, store, folder)
        this.summary |= result
    return plain(result)


def summary_of(evaluation: Evaluation) -> dict:
    def described(name: str, comparison: Comparison) -> dict:
        return asdict(comparison) | {"in_sample": name in evaluation.in_sample}

    return plain(
        {
            "model": evaluation.config.model,
            "against": evaluation.config.against,
            "n_prompts": len({side.prompt for side in evaluation.sides}),
            "n_pairs": len(evaluation.sides),
            "n_trained_prompts": evaluation.n_trained_prompts,
            "scorers": {name: described(name, comparison) for name, comparison in evaluation.overall.items()},
            "tags": {
                tag: {value: {n: described(n, c) for n, c in by_scorer.items()} for value, by_scorer in values.items()}
                for tag, values in evaluation.by_tag.items()
            },
        }
    )


def _paired(base: Plan, tuned: Plan, store: PairStore, run_id: UUID) -> list[Side]:
    """The pictures of both models, prompt by prompt and index by index; their pairs go into the store."""
    tags = {prompt.text: prompt.tags for prompt in base.prompts}
    base_images, tuned_images = images_of(base.wanted, store), images_of(tuned.wanted, store)
    sides, pairs = [], {}
    for one, other in zip(base.wanted, tuned.wanted, strict=True):
        first, second = base_images[one.generation_id], tuned_images[other.generation_id]
        sides.append(Side(one.prompt, tags[one.prompt], one.index, first, second, {}))
        pair = new_pair(prompt_id(one.prompt), first, second, "eval", run_id)
        if pair is not None:
            pairs[pair["pair_id"]] = pair
    known = {identity for (identity,) in store.rows("select pair_id from pairs")}
    store.append("pairs", [pair for identity, pair in pairs.items() if identity not in known])
    store.absorb()
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


def _compared(sides: list[Side], names: list[str], n_resamples: int) -> dict[str, Comparison]:
    numbers: dict[str, int] = {}
    prompts = np.array([numbers.setdefault(side.prompt, len(numbers)) for side in sides])
    compared = {}
    for name in names:
        base, tuned = np.array([side.scores[name] for side in sides]).T
        try:
            compared[name] = compare(base, tuned, prompts, n_resamples)
        except ValueError as error:
            raise UsageError(f"{name} gave no finite score on any of the {len(sides)} pairs") from error
    return compared


def _by_tag(sides: list[Side], names: list[str], n_resamples: int) -> dict[str, dict[str, dict[str, Comparison]]]:
    groups: dict[str, dict[str, list[Side]]] = defaultdict(lambda: defaultdict(list))
    for side in sides:
        for tag, value in side.tags.items():
            groups[tag][value].append(side)
    return {
        tag: {value: _compared(of, names, n_resamples) for value, of in sorted(values.items())}
        for tag, values in groups.items()
        if 1 < len(values) <= MOST_TAG_VALUES
    }


def _training_scorers(trained: dict) -> set[str]:
    keys = [key for labeler in trained.get("labelers", {}).values() for key in labeler.get("scorers", [])]
    return {key.split("@")[0] for key in keys}


def _trained_prompts(trained: dict, sides: list[Side], store: PairStore) -> int:
    labels = trained.get("labels", [])
    rows = store.rows(
        "select distinct prompt from preferences where source <> 'eval' and labeler in (select unnest(?::varchar[]))",
        [labels],
    )
    return len({prompt for (prompt,) in rows} & {side.prompt for side in sides})


def as_json(result: dict) -> str:
    return json.dumps(result, allow_nan=False)
