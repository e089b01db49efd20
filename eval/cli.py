"""`prefloop eval`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.cli import DEFAULT, JsonOption, StoreOption, completing, options_of, say, say_next
from ..core.document import answer
from ..core.errors import BadDataError, UsageError
from ..core.options import config_fields
from ..core.power import sample_sentence
from ..core.stats import no_interval
from ..core.text import percent, short_names
from ..generate.prompt_sets.names import known_prompts
from ..models.completion import known_models
from ..relabel.config import installed_scorers, parse_checkpoints
from ..relabel.judges.request_limits import LIMITS, describe_usage
from ..store import completion
from .benchmarks import benchmarks, read_benchmark
from .config import HUMAN, EvalConfig
from .verdict import headline, sweep_verdict, verdict


@options_of(
    EvalConfig,
    panels={
        "Sampling": "num_inference_steps guidance_scale resolution scheduler negative_prompt",
        "Machine": "batch_size dtype vae_dtype device workers",
        "Endpoint": " ".join(LIMITS),
    },
    parsers={"checkpoints": parse_checkpoints},
    values={
        "scorers": lambda _: installed_scorers(),
        "models": known_models,
        "baseline": known_models,
        "sweep": known_models,
        "prompts": known_prompts,
    },
)
def evaluate(
    given: dict[str, Any],
    store: StoreOption = DEFAULT,
    benchmark: Annotated[
        str | None,
        typer.Option(
            autocompletion=completing(lambda _: benchmarks()),
            help=f"{', '.join(benchmarks())}, or a TOML file: prompts and other options to use.",
            show_default=False,
        ),
    ] = None,
    again: Annotated[
        str | None,
        typer.Option(
            autocompletion=completing(completion.evaluations),
            help="Report an evaluation again, by its name or the first digits of its id, with the labels that people have "
            "given since; nothing is generated or scored.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how often tuned models win, with intervals, and write a report.

    Example: prefloop eval --model tuned --scorer hps --scorer oracle --checkpoint shapes
    """
    if again is not None and (others := given.keys() - {"output_dir"} | ({"benchmark"} if benchmark else set())):
        options = {field.name: field.option for field in config_fields(EvalConfig)} | {"benchmark": "--benchmark"}
        raise UsageError(
            f"--again takes its settings from the evaluation; leave out {', '.join(sorted(options[name] for name in others))}"
        )
    if given.get("models") and given.get("sweep") is not None:
        raise UsageError("--sweep evaluates the checkpoints of one run; leave out --model")
    settings = {} if benchmark is None else read_benchmark(benchmark)
    config = None if again is not None else EvalConfig(**settings | given)
    from ..models.checkpoints import BEST
    from ..store.pairstore import PairStore
    from .stage import refuse_impossible, report_again, run_evaluation

    if config is None or PairStore(Path(store)).exists():
        opened = PairStore.open(store)
    else:
        refuse_impossible(config)
        opened = PairStore.create(store)
        say(f"created the store {store}", err=True)
    if config is None:
        evaluation, result = report_again(again or "", given.get("output_dir"), opened)
    else:
        evaluation, result = run_evaluation(config, opened)
    if as_json:
        answer(result)
    else:
        say(table(result))
    for name, usage in result.get("usage", {}).items():
        say(f"{name}: {describe_usage(usage)}", err=True)
    if result["sweep"] is not None and config is not None and not as_json:
        say(f"it is in {config.sweep}/{BEST}: prefloop generate --model {config.sweep}/{BEST}")
    if evaluation.config.asks_people and not as_json:
        say("\n".join(_people(result, opened.path)))
    if not as_json:
        say_next("browse", store=opened.path)
    if silent := [name for name in result["without_result"] if name != HUMAN]:
        raise BadDataError(
            f"{', '.join(silent)} gave no finite score on both images of any of the {result['n_pairs']} pairs"
        )


def _people(result: dict, store: Path) -> list[str]:
    """What people's labels of this evaluation can show, and how they are given and counted."""
    human = result["human"]
    tie_rate = human["ties"] / human["labels"] if 0 < human["labels"] > human["ties"] else 0.0
    return [
        f"people: {human['labelled']} of {human['pairs']} pairs labelled; {sample_sentence(human['pairs'], tie_rate)}",
        f"people label with:  prefloop label --queue eval:{result['name']} --store {store}",
        f"then report again:  prefloop eval --again {result['name']} --store {store}",
    ]


def table(result: dict) -> str:
    """The result as lines for a terminal."""
    names = short_names([place["model"] for place in result["models"]])
    lines = []
    if result["sweep"] is not None:
        return "\n".join(_sweep(result))
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


def _sweep(result: dict) -> list[str]:
    """A line for each checkpoint with its win rates, and which one is the best."""
    sweep, comparisons = result["sweep"], [result, *result["other_comparisons"]]
    judges = list(dict.fromkeys(name for compared in comparisons for name in compared["scorers"]))
    in_sample = {name for c in comparisons for name, row in c["scorers"].items() if row["in_sample"]}
    heads = [f"{name} (in-sample)" if name in in_sample else name for name in judges]
    widths = [max(24, len(head) + 2) for head in heads]
    lines = [
        f"{len(comparisons)} checkpoints against {result['baseline']}: {result['n_pairs']} pairs for {result['n_prompts']} prompts "
        f"of {result['prompts']}, {_trained(result['n_trained_prompts'])}; {result['settings']}",
        f"{'step':>6}" + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)),
    ]
    for compared in comparisons:
        cells = [_rate(compared["scorers"].get(name)).rjust(width) for name, width in zip(judges, widths, strict=True)]
        lines.append(f"{sweep['steps'][compared['model']]:>6}{''.join(cells)}")
    return [*lines, sweep_verdict(result), f"report: {result['report']}/report.html"]


def _rate(row: Mapping[str, Any] | None) -> str:
    """A win rate with its interval, such as "62.0 % (58.1 to 65.9)"."""
    if row is None:
        return "–"
    low, high = row["win_rate_low"], row["win_rate_high"]
    return percent(row["win_rate"]) + ("" if low is None else f" ({100 * low:.1f} to {100 * high:.1f})")


def _rows(compared: Mapping[str, Any]) -> list[str]:
    lines = [f"{'judge':<12}{'win rate':>9}  {'95 % interval':<17}{'base':>9}{'tuned':>9}{'diff':>9}  95 % interval"]
    for name, row in compared["scorers"].items():
        win_rates = _shares(row["win_rate_low"], row["win_rate_high"])
        scores = ""
        if row["base_mean"] is not None:
            scores = (
                f"{row['base_mean']:>9.4f}{row['tuned_mean']:>9.4f}{row['diff']:>+9.4f}  "
                f"{_interval(row['diff_low'], row['diff_high'], '+.4f')}"
            )
        has_interval = None not in (row["win_rate_low"], row["diff_low"] if scores else 0)
        lines.append(
            f"{name:<12}{percent(row['win_rate']):>9}  {win_rates:<17}{scores}".rstrip()
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


def _shares(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{100 * low:.1f} – {percent(high)}"


def _trained(n: int | None) -> str:
    if n is None:
        return "which of them were trained on is not known"
    return f"{n or 'none'} of them trained on"


__all__ = ["evaluate", "table"]
