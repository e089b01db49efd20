"""`prefloop relabel`."""

from dataclasses import asdict
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.cli import DEFAULT, JsonOption, StoreOption, options_of, say, say_next
from ..core.document import answer
from ..core.errors import UsageError
from ..store import completion
from .config import RelabelConfig, installed_scorers, parse_checkpoints, parse_scorer_weights
from .judges.request_limits import LIMITS, describe_usage

if TYPE_CHECKING:
    from ..store.pairstore import PairStore


@options_of(
    RelabelConfig,
    panels={
        "Rule": "rule scorer_weights tie_band tie_quantile select temperature fit_temperature",
        "Machine": "batch_size device dtype workers",
        "Endpoint": " ".join(LIMITS),
    },
    parsers={"checkpoints": parse_checkpoints, "scorer_weights": parse_scorer_weights},
    values={
        "scorers": lambda _: installed_scorers(),
        "labeler": completion.labelers,
        "fit_temperature": completion.labelers,
    },
)
def relabel(
    given: dict[str, Any],
    store: StoreOption = DEFAULT,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print how many images are unscored and what scoring them will take, and exit."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Score images and label pairs. Each image is scored once; another rule uses the same scores.

    --scorer human opens the page of `prefloop label`; see its help for options.

    Example: prefloop relabel --scorer pickscore --checkpoint shapes
    """
    if "human" in given.get("scorers", ()):
        _open_page(given["scorers"], given.get("labeler"), store, as_json)
        return
    from ..store.pairstore import PairStore

    config = RelabelConfig(**given)
    opened = PairStore.open(store)
    if dry_run:
        _print_plan(config, opened, as_json)
        return
    from .stage import relabel as score_and_label

    summary = score_and_label(config, opened)
    if as_json:
        answer(summary)
        return
    _print_summary(summary)
    if summary["labels"]["a"] + summary["labels"]["b"]:
        names = [name for (name,) in opened.rows("select distinct name from models")]
        model = ("--model", names[0]) if len(names) == 1 and names[0] != "shapes" else ()
        say_next("train", *model, "--labeler", summary["labeler"], "--output-dir", _free("tuned"), store=store)


def _free(name: str) -> str:
    """The name, with a number if a folder or file has it already: `train` would refuse one with other settings."""
    return next(free for free in chain([name], (f"{name}-{n}" for n in count(2))) if not Path(free).exists())


def _print_summary(summary: dict) -> None:
    labels, scored = summary["labels"], summary["scored"]
    nothing = "nothing to do: " if not summary["new_labels"] and not any(scored.values()) else ""
    counts = ", ".join(f"{count} by {name}" for name, count in scored.items())
    not_selected = f", {labels['not_selected']} not selected" if labels["not_selected"] else ""
    say(
        f"{nothing}images scored: {counts}; labels of {summary['labeler']}: {labels['a'] + labels['b']} decided, "
        f"{labels['tie']} ties, {labels['undecided']} undecided{not_selected}; {summary['new_labels']} new"
    )
    if summary["no_longer_selected"]:
        say(
            f"{summary['no_longer_selected']} pairs that are no longer selected keep their label of an earlier run; "
            "give --labeler another name to label only what is selected now",
            err=True,
        )
    for reason, n in summary["excluded"].items():
        say(f"{n} {reason}", err=True)
    for name, usage in summary.get("usage", {}).items():
        say(f"{name}: {describe_usage(usage)}", err=True)
    for name, n in summary["truncated_prompts"].items():
        say(f"{n} prompts are longer than {name} reads, and were truncated", err=True)


def _open_page(scorers: tuple[str, ...], labeler: str | None, store: Path, as_json: bool) -> None:
    from ..store.pairstore import PairStore
    from .annotate.cli import run_label
    from .annotate.config import LabelConfig

    if len(scorers) > 1:
        raise UsageError("human labels alone; name no other scorer, and compare with `prefloop store agreement`")
    run_label(LabelConfig(labelers=(labeler,) if labeler else ()), PairStore.open(store), as_json=as_json)


def _print_plan(config: RelabelConfig, store: "PairStore", as_json: bool) -> None:
    from .plan import plan

    plans = plan(config, store)
    if as_json:
        answer([asdict(scoring) for scoring in plans])
        return
    for scoring in plans:
        if scoring.requests is not None:
            say(
                f"{scoring.scorer:<14}{scoring.unscored} to judge, in {scoring.requests} requests, and more if some fail"
            )
            continue
        seconds = scoring.seconds
        time = "time unknown: it has not scored here yet" if seconds is None else f"about {seconds:.0f} s"
        say(
            f"{scoring.scorer:<14}{scoring.unscored} unscored, {scoring.embedded} of them embedded already; "
            f"{scoring.batches} batches; {time}; at least {scoring.memory / 2**30:.1f} GiB"
        )
