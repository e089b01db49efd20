"""`prefloop eval`."""

from typing import Annotated, Any

import typer

from ..core.cli import DEFAULT, StoreOption, options_of, say
from ..core.errors import BadDataError, UsageError
from ..core.stats import no_interval
from ..relabel.config import parse_checkpoints
from ..store.pairstore import PairStore
from .config import EvalConfig


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
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Measure how often a tuned model wins, with intervals, and write a report.

    Example: prefloop eval --model tuned --scorer hps --scorer oracle --checkpoint shapes
    """
    if not given.get("model"):
        raise UsageError("name the tuned model with --model")
    config = EvalConfig(**given)
    opened = PairStore.open(store)
    from .stage import as_json as strict_json
    from .stage import evaluate as run_evaluation

    result = run_evaluation(config, opened)
    say(strict_json(result) if as_json else table(result))
    if result["without_result"]:
        raise BadDataError(
            f"{', '.join(result['without_result'])} gave no finite score on both images of any of the {result['n_pairs']} pairs"
        )


def table(result: dict) -> str:
    """The result as lines for a terminal."""
    lines = [
        f"{result['model']} against {result['baseline']}: {result['n_pairs']} pairs for {result['n_prompts']} prompts of "
        f"{result['prompts']}, {_trained(result['n_trained_prompts'])}; {result['settings']}",
        f"{'scorer':<12}{'win rate':>9}  {'95 % interval':<17}{'base':>9}{'tuned':>9}{'diff':>9}  95 % interval",
    ]
    for name, row in result["scorers"].items():
        win_rates = _interval(row["win_rate_low"], row["win_rate_high"], ".1%")
        lines.append(
            f"{name:<12}{row['win_rate']:>9.1%}  {win_rates:<17}{row['base_mean']:>9.4f}"
            f"{row['tuned_mean']:>9.4f}{row['diff']:>+9.4f}  {_interval(row['diff_low'], row['diff_high'], '+.4f')}"
            + ("  in-sample" if row["in_sample"] else "")
            + (f"  {row['n_pairs']} of {result['n_pairs']} pairs" if row["n_excluded"] else "")
            + (f"  {no_interval(row['n_prompts'])}" if None in (row["win_rate_low"], row["diff_low"]) else "")
        )
    lines.append(f"report: {result['report']}/report.html")
    return "\n".join(lines)


def _interval(low: float | None, high: float | None, form: str) -> str:
    return "–" if low is None or high is None else f"{low:{form}} – {high:{form}}"


def _trained(n: int | None) -> str:
    if n is None:
        return "which of them were trained on is not known"
    return f"{n or 'none'} of them trained on"


__all__ = ["evaluate", "table"]
