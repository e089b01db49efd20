"""Generate with every model, score the images, and report how often each model wins."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from ..core.files import refuse_report_over_others, refuse_unwritable
from ..core.json import plain
from ..core.signals import StopSignal
from ..core.text import plural, visible
from ..generate.defaults import describe_sampling
from ..generate.prompts import read_prompts
from ..generate.stage import Plan, generate_missing, image_ids, plan_generations
from ..relabel.config import RelabelConfig
from ..relabel.judges.request_limits import limit_requests, recording_usage, usage_of
from ..relabel.labels import write_labels
from ..relabel.scorers.calls import refuse_without_tags
from ..relabel.scorers.registry import identity, load_scorers
from ..relabel.scores import score_images, unscored_images
from ..relabel.scoring_pool import scorer_workers
from ..store import PairStore, prompt_id
from ..store.evaluations import add_evaluation, evaluation_id
from ..store.pairstore import new_pair
from ..store.runs import Run, run
from .config import EvalConfig
from .judges import choose_scorers, left_out_lines
from .lineup import Lineup, find_lineup, resolve_settings
from .recorded import judgements, judges_of, recorded
from .result import Background, Evaluation, ImagePair, background_of, evaluation_of, summary_of
from .sweep import checkpoints_of, keep_best, sweep_of


def refuse_impossible(config: EvalConfig) -> None:
    """Look up the models, the judges and the prompts, before a store is created for them.

    Raises:
        UsageError, PrefloopError: as `run_evaluation` would.
    """
    if config.sweep is not None:
        config = replace(config, models=tuple(checkpoints_of(Path(config.sweep))))
    models, _ = find_lineup(config)
    choose_scorers(config, models[0], fetch=False)
    read_prompts(resolve_settings(config, models, None).prompts or "", config.limit)


def evaluate(config: EvalConfig, store: PairStore) -> dict:
    """The result of `run_evaluation` as JSON."""
    return run_evaluation(config, store)[1]


def run_evaluation(config: EvalConfig, store: PairStore) -> tuple[Evaluation, dict]:
    """Compare models on the same prompts and noise, and write a report.

    Returns:
        The evaluation, and as JSON: of the first model against its baseline model, baseline, n_prompts, n_pairs, scorers (judge
        → win_rate, win_rate_low, win_rate_high, base_mean, tuned_mean, diff, diff_low, diff_high, in_sample …),
        without_result (judges that have no result), left_out (default judges that cannot run here, with the reason), tags, n_trained_prompts; other_comparisons (likewise); models, ranks
        (judge → models from the strongest to the weakest); evaluation_id, name, scorer_ids, steps and sweep
        (of checkpoints, and the best one), human (counts of pairs and
        labels), usage (of judges behind an endpoint), sampling (the settings that all models used), report (its folder).
        Intervals are None below MIN_PROMPTS prompts.

    Raises:
        UsageError: if no baseline is known, models cannot be compared, or the report would overwrite other files.
        MissingWeights: if no scorer is named and none of the usual ones can run here.
        BadDataError: if no scorer has a result.
    """
    steps = None if config.sweep is None else checkpoints_of(Path(config.sweep))
    if steps is not None:
        config = replace(config, models=tuple(steps))
        refuse_unwritable(Path(config.sweep or ""))
    models, lineup = find_lineup(config)
    config, left_out = choose_scorers(config, models[0], fetch=True)
    for line in left_out_lines(left_out):
        print(visible(line), file=sys.stderr)
    config = resolve_settings(config, models, store)
    scorers = load_scorers(config.scorer_names, config.checkpoints, config.device)
    limit_requests(scorers, config)
    if len(models) == 2:
        config = replace(config, baseline=lineup.names[lineup.comparisons[0][1]])
    prompts = read_prompts(config.prompts or "", config.limit)
    refuse_without_tags(scorers, (prompt.tags for prompt in prompts), config.prompts or "")
    plans = [plan_generations(config.generate_config(model.name), model, prompts, store) for model in models]
    places = {prompt.text: (place, prompt.tags) for place, prompt in enumerate(prompts)}
    generations = {item.generation_id: places[item.prompt] for planned in plans for item in planned.generations}
    key = evaluation_id(generations)
    _refuse_other_report(config.output_dir)
    with (
        store.stage_lock("eval", key.hex[:16]),
        StopSignal().listening() as stop,
        run(store, "eval", _with_absolute_folder(config)) as eval_run,
        recording_usage(scorers, eval_run.summary),
    ):
        judges = [*(scorer.name for scorer in scorers), *["people"] * config.asks_people]
        print(visible(_first_line(lineup, plans, judges)), file=sys.stderr)
        for planned in plans:
            generate_missing(planned, store, eval_run, stop)
        pairs = _pair_images(lineup, plans, store, eval_run.run_id)
        add_evaluation(store, generations)
        store.ingest()
        images = {(prompt_id(p.prompt), image) for of_two in pairs for p in of_two for image in (p.base, p.tuned)}
        for name, scorer in zip(config.scorer_names, scorers, strict=True):
            items = unscored_images(store, identity(scorer), sorted(images))
            batch_size = max(config.batch_size, 64)
            with scorer_workers(config.workers, name, scorer, config.checkpoints, config.device) as workers:
                score_images(
                    store, scorer, items, batch_size=batch_size, run_id=eval_run.run_id, stop=stop, workers=workers
                )
            labeler = f"eval:{identity(scorer)}"
            write_labels(store, labeler, RelabelConfig(), [scorer], ("eval",), eval_run.run_id)
            stop.check(f"the scores of {scorer.name} are in {store.path}")
        with stop.at_once():
            backgrounds = [
                background_of(models[tuned], models[base], of_two)
                for (tuned, base), of_two in zip(lineup.comparisons, pairs, strict=True)
            ]
            about = {
                "evaluation_id": str(key),
                "name": config.name or key.hex[:12],
                "scorer_ids": [[scorer.name, identity(scorer)] for scorer in scorers],
                "prompts": config.prompts,
                "sampling": plans[0].config.sampling(),
                "settings": describe_sampling(plans[0].config),
                "steps": steps,
                "left_out": left_out,
            }
            evaluation = _judge(config, lineup, pairs, backgrounds, about, store)
        result = _report(evaluation, about, store, eval_run)
    if usage := usage_of(scorers):
        result["usage"] = usage
    if result["sweep"] is not None:
        keep_best(Path(config.sweep or ""), result["sweep"]["best"], store)
    return evaluation, result


def _first_line(lineup: Lineup, plans: Sequence[Plan], judges: Sequence[str]) -> str:
    """What the evaluation is about to do."""
    n_missing = sum(len(planned.missing) for planned in plans)
    models = (" against " if len(plans) == 2 else ", ").join(lineup.names)
    return (
        f"evaluating {models} on {plural(len(plans[0].prompts), 'prompt')} of {plans[0].config.prompts} "
        f"({describe_sampling(plans[0].config)}): {plural(n_missing, 'image')} to generate, judged by {', '.join(judges)}"
    )


def report_again(name: str, report: str | None, store: PairStore) -> tuple[Evaluation, dict]:
    """Report an evaluation that is in the store again, with the labels that people have given since. Nothing is generated or
    scored, and no model is read.

    Args:
        name: of the evaluation, or the first digits of its id.
        report: folder for the report; None for the one below the store's reports/.

    Returns:
        As `run_evaluation`.

    Raises:
        UsageError: if the evaluation does not exist, or the report would overwrite other files.
    """
    config, lineup, pairs, backgrounds, about = recorded(store, name)
    config = replace(config, output_dir=report)
    _refuse_other_report(report)
    with run(store, "eval", _with_absolute_folder(config)) as eval_run:
        evaluation = _judge(config, lineup, pairs, backgrounds, about, store)
        result = _report(evaluation, about, store, eval_run)
    return evaluation, result


def _with_absolute_folder(config: EvalConfig) -> EvalConfig:
    """The settings as the store keeps them: `browse` looks for the report from any folder."""
    return config if config.output_dir is None else replace(config, output_dir=str(Path(config.output_dir).absolute()))


def _refuse_other_report(report: str | None) -> None:
    from .report import FILES, PAGE

    if report is not None:
        refuse_report_over_others(Path(report), PAGE, *FILES)
        refuse_unwritable(Path(report))


def _judge(
    config: EvalConfig,
    lineup: Lineup,
    pairs: Sequence[list[ImagePair]],
    backgrounds: Sequence[Background],
    about: Mapping[str, Any],
    store: PairStore,
) -> Evaluation:
    scorer_ids = dict(about["scorer_ids"])
    judged = judgements(pairs, store, UUID(about["evaluation_id"]), scorer_ids)
    judges = judges_of(judged, scorer_ids, people=config.asks_people)
    return evaluation_of(config, lineup, judged, judges, backgrounds)


def _report(evaluation: Evaluation, about: dict, store: PairStore, eval_run: Run) -> dict:
    """Write the report; the result is the run's."""
    from .people import counts_of
    from .report import write_report

    config = evaluation.config
    folder = Path(config.output_dir) if config.output_dir else store.path / "reports" / about["name"]
    sweep = None if about["steps"] is None else sweep_of(evaluation, about["steps"])
    human = counts_of(store, UUID(about["evaluation_id"]))
    result = summary_of(evaluation) | about | {"sweep": sweep, "human": human, "report": str(folder)}
    write_report(evaluation, result, store, folder)
    eval_run.summary |= result
    return plain(result)


def _pair_images(lineup: Lineup, plans: Sequence[Plan], store: PairStore, run_id: UUID) -> list[list[ImagePair]]:
    """For each comparison the images of both models, prompt by prompt and index by index; their pairs go into the store."""
    tags = {prompt.text: prompt.tags for prompt in plans[0].prompts}
    images = [image_ids(planned.generations, store) for planned in plans]
    pairs, rows = [], {}
    for tuned, base in lineup.comparisons:
        of_two = []
        for item, of_base, of_tuned in zip(plans[0].generations, images[base], images[tuned], strict=True):
            of_two.append(ImagePair(item.prompt, tags[item.prompt], item.index, of_base, of_tuned, {}))
            row = new_pair(prompt_id(item.prompt), of_base, of_tuned, "eval", run_id)
            if row is not None:
                rows[row["pair_id"]] = row
        pairs.append(of_two)
    store.append_new("pairs", rows.values())
    return pairs
