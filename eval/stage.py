"""Generate with both models, score the images, and report how often the tuned model wins."""

import json
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from ..core.files import refuse_report_over_others
from ..core.json import plain
from ..core.signals import StopSignal
from ..generate.defaults import describe_sampling
from ..generate.prompts import read_prompts
from ..generate.stage import Plan, generate_missing, image_ids, plan_generations
from ..models.resolve import find_model
from ..relabel.config import RelabelConfig
from ..relabel.labels import write_labels
from ..relabel.scorers.registry import Scorer, identity, load_scorers
from ..relabel.scores import score_images, unscored_images
from ..store import PairStore, prompt_id
from ..store.pairstore import new_pair
from ..store.runs import run
from .baseline import find_baseline, resolve_settings
from .config import EvalConfig
from .result import Evaluation, ImagePair, evaluation_of, summary_of


def evaluate(config: EvalConfig, store: PairStore) -> dict:
    """The result of `run_evaluation` as JSON."""
    return run_evaluation(config, store)[1]


def run_evaluation(config: EvalConfig, store: PairStore) -> tuple[Evaluation, dict]:
    """Compare a tuned model with another on the same prompts and noise, and write a report.

    Returns:
        The evaluation, and as JSON: model, baseline, n_prompts, n_pairs, report (its folder), scorers (name → win_rate,
        win_rate_low, win_rate_high, base_mean, tuned_mean, diff, diff_low, diff_high, in_sample …), without_result (scorers that gave no finite score),
        tags, n_trained_prompts, sampling (the settings that both models used). Intervals are None below MIN_PROMPTS
        prompts.

    Raises:
        UsageError: if no baseline is known, the two cannot be compared, or the report would overwrite other files.
        BadDataError: if no scorer has a result.
    """
    scorers = load_scorers(config.scorers, config.checkpoints, config.device)
    tuned = find_model(config.model)
    base = find_baseline(config, tuned)
    config = resolve_settings(config, base, tuned, store)
    prompts = read_prompts(config.prompts or "", config.limit)
    plans = [plan_generations(config.generate_config(model.name), model, prompts, store) for model in (base, tuned)]
    from .report import FILES, PAGE, write_report

    if config.report is not None:
        refuse_report_over_others(Path(config.report), PAGE, *FILES)
    with (
        store.stage_lock("eval", tuned.model_id.hex[:16]),
        StopSignal().listening() as stop,
        run(store, "eval", config) as eval_run,
    ):
        for planned in plans:
            generate_missing(planned, store, eval_run, stop)
        pairs = _pair_images(plans[0], plans[1], store, eval_run.run_id)
        images = sorted({(prompt_id(p.prompt), image) for p in pairs for image in (p.base, p.tuned)})
        for scorer in scorers:
            items = unscored_images(store, identity(scorer), images)
            batch_size = max(config.batch_size, 64)
            score_images(store, scorer, items, batch_size=batch_size, run_id=eval_run.run_id, stop=stop)
            labeler = f"eval:{identity(scorer)}"
            write_labels(store, labeler, RelabelConfig(), [scorer], ("eval",), eval_run.run_id)
            stop.check(f"the scores of {scorer.name} are in {store.path}")
        pairs = _with_scores(pairs, scorers, store)
        with stop.at_once():
            evaluation = evaluation_of(config, tuned, pairs, [scorer.name for scorer in scorers])
        folder = Path(config.report) if config.report else store.path / "reports" / eval_run.run_id.hex[:12]
        result = summary_of(evaluation) | {
            "model_id": str(tuned.model_id),
            "base_model_id": str(base.model_id),
            "prompts": config.prompts,
            "sampling": plans[1].config.sampling(),
            "settings": describe_sampling(plans[1].config),
            "report": str(folder),
        }
        write_report(evaluation, result, store, folder)
        eval_run.summary |= result
    return evaluation, plain(result)


def _pair_images(base: Plan, tuned: Plan, store: PairStore, run_id: UUID) -> list[ImagePair]:
    """The images of both models, prompt by prompt and index by index; their pairs go into the store."""
    tags = {prompt.text: prompt.tags for prompt in base.prompts}
    base_images, tuned_images = image_ids(base.generations, store), image_ids(tuned.generations, store)
    image_pairs, rows = [], {}
    for of_base, of_tuned in zip(base.generations, tuned.generations, strict=True):
        image_a, image_b = base_images[of_base.generation_id], tuned_images[of_tuned.generation_id]
        image_pairs.append(ImagePair(of_base.prompt, tags[of_base.prompt], of_base.index, image_a, image_b, {}))
        row = new_pair(prompt_id(of_base.prompt), image_a, image_b, "eval", run_id)
        if row is not None:
            rows[row["pair_id"]] = row
    store.append_new("pairs", rows.values())
    store.ingest()
    return image_pairs


def _with_scores(pairs: list[ImagePair], scorers: list[Scorer], store: PairStore) -> list[ImagePair]:
    scores: dict[str, dict[tuple[UUID, UUID], float]] = {}
    for scorer in scorers:
        rows = store.rows("select prompt_id, image_id, score from scores where scorer = ?", [identity(scorer)])
        scores[scorer.name] = {(prompt, image): score for prompt, image, score in rows}
    nan = float("nan")
    scored = []
    for pair in pairs:
        base, tuned = ((prompt_id(pair.prompt), image) for image in (pair.base, pair.tuned))
        both = {name: (known.get(base, nan), known.get(tuned, nan)) for name, known in scores.items()}
        scored.append(replace(pair, scores=both))
    return scored


def as_json(result: dict) -> str:
    return json.dumps(result, allow_nan=False)
