"""`prefloop eval`."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from ..core.cli import DEFAULT, StoreOption, options_of, say
from ..core.errors import BadDataError, UsageError
from ..core.stats import no_interval
from ..relabel.config import parse_checkpoints
from ..store.pairstore import PairStore
from .config import HUMAN, EvalConfig
from .verdict import headline, short_names, verdict


@options_of(
    EvalConfig,
    panels={
        "Sampling": "num_inference_steps guidance_scale resolution scheduler negative_prompt",
        "Machine": "batch_size dtype device",
    },
    parsers={"checkpoints": parse_checkpoints},
)
def evaluate(
    given: dict[str, Any],
    store: StoreOption = DEFAULT,
    again: Annotated[
        str | None,
        typer.Option(
            help="Report an evaluation again, by its name or the first digits of its id, with the labels that people have "
            "given since; nothing is generated or scored.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Measure how often tuned models win, with intervals, and write a report.

    Example: prefloop eval --model tuned --scorer hps --scorer oracle --checkpoint shapes
    """
    if again is not None and (others := given.keys() - {"report"}):
        raise UsageError(f"--again takes its settings from the evaluation; leave out {', '.join(sorted(others))}")
    if again is None and not given.get("models"):
        raise UsageError("name the tuned model with --model")
    config = None if again is not None else EvalConfig(**given)
    opened = PairStore.open(store)
    from .stage import as_json as strict_json
    from .stage import report_again, run_evaluation

    if config is None:
        evaluation, result = report_again(again or "", given.get("report"), opened)
    else:
        evaluation, result = run_evaluation(config, opened)
    say(strict_json(result) if as_json else table(result))
    if evaluation.config.asks_people and not as_json:
        say(f"people label the pairs with: prefloop label --queue eval:{result['name']} --store {opened.path}")
    if silent := [name for name in result["without_result"] if name != HUMAN]:
        raise BadDataError(
            f"{', '.join(silent)} gave no finite score on both images of any of the {result['n_pairs']} pairs"
        )


def table(result: dict) -> str:
    """The result as lines for a terminal."""
    names = short_names([place["model"] for place in result["models"]])
    lines = []
    for compared in headline(result):
        lines += [
            f"{names[compared['model']]} against {names[compared['baseline']]}: {compared['n_pairs']} pairs for {compared['n_prompts']} "
            f"prompts of {result['prompts']}, {_trained(compared['n_trained_prompts'])}; {result['settings']}",
            *_rows(compared),
            verdict(compared, names),
        ]
    lines += _ranks(result["ranks"], names)
    lines.append(f"report: {result['report']}/report.html")
    return "\n".join(lines)


def _rows(compared: Mapping[str, Any]) -> list[str]:
    lines = [f"{'judge':<12}{'win rate':>9}  {'95 % interval':<17}{'base':>9}{'tuned':>9}{'diff':>9}  95 % interval"]
    for name, row in compared["scorers"].items():
        win_rates = _interval(row["win_rate_low"], row["win_rate_high"], ".1%")
        scores = ""
        if row["base_mean"] is not None:
            scores = (
                f"{row['base_mean']:>9.4f}{row['tuned_mean']:>9.4f}{row['diff']:>+9.4f}  "
                f"{_interval(row['diff_low'], row['diff_high'], '+.4f')}"
            )
        has_interval = None not in (row["win_rate_low"], row["diff_low"] if scores else 0)
        lines.append(
            f"{name:<12}{row['win_rate']:>9.1%}  {win_rates:<17}{scores}".rstrip()
            + ("  in-sample" if row["in_sample"] else "")
            + (f"  {row['n_pairs']} of {compared['n_pairs']} pairs" if row["n_excluded"] else "")
            + ("" if has_interval else f"  {no_interval(row['n_prompts'])}")
        )
    return lines


def _ranks(by_judge: dict[str, list[dict]], names: dict[str, str]) -> list[str]:
    """A block for each judge; models that share a letter cannot be told apart."""
    lines, width = [], max(map(len, names.values()))
    for judge, ranks in by_judge.items():
        lines.append(f"ranks by {judge}; models that share a letter cannot be told apart")
        for place in ranks:
            interval = _interval(place["low"], place["high"], "+.0f")
            lines.append(
                f"  {names[place['model']]:<{width}}{place['strength']:>+7.0f}  {interval:<17}{place['groups']}"
            )
    return lines


def _interval(low: float | None, high: float | None, form: str) -> str:
    return "–" if low is None or high is None else f"{low:{form}} – {high:{form}}"


def _trained(n: int | None) -> str:
    if n is None:
        return "which of them were trained on is not known"
    return f"{n or 'none'} of them trained on"


__all__ = ["evaluate", "table"]
