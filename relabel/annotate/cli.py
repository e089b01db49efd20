"""`prefloop label` and `prefloop browse`."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ...core.cli import DEFAULT, JsonOption, StoreOption, options_of, say
from ...core.document import answer
from ...core.json import plain
from .config import BrowseConfig, LabelConfig

if TYPE_CHECKING:
    from ...store.pairstore import PairStore


@options_of(LabelConfig, panels={"Server": "host port allow_hosts"})
def label(
    given: dict[str, Any],
    store: StoreOption = DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the links and the summary as JSON lines.")] = False,
) -> None:
    """Open a page where people choose the better of two images. Each answer is saved at once; Ctrl-C ends it.

    Example: prefloop label --queue disagreements --labeler me
    """
    from ...store.pairstore import PairStore

    run_label(LabelConfig(**given), PairStore.open(store), as_json=as_json)


def run_label(config: LabelConfig, store: "PairStore", *, as_json: bool = False) -> None:
    """Serve the labelling page, then print a summary."""
    from .label import label as serve_label
    from .outcome import Comparison, comparisons, outcome_lines, plan_lines
    from .queue import evaluation_of, other_questions, pairs_to_label
    from .serve import try_or_warn

    def announce(link: str, name: str | None) -> None:
        who = f"for {name}" if name else "for one person"
        where = ", on any device in this network" if config.is_exposed else ""
        say(json.dumps({"link": link, "labeler": name}) if as_json else f"link {who}, works once{where}: {link}")

    evaluation = evaluation_of(store, config)
    pairs = pairs_to_label(store, config) if evaluation else []
    if evaluation:
        say("\n".join(plan_lines(store, evaluation, pairs)), err=True)
    for line in other_questions(store, config):
        say(line, err=True)
    summary = serve_label(config, store, announce)
    compared: list[Comparison] = []
    if evaluation:
        try_or_warn(
            lambda: compared.extend(comparisons(store, evaluation, pairs)), "`prefloop browse` shows the outcome"
        )
    if as_json:
        outcome = {"comparisons": [asdict(each) for each in compared]} if evaluation else {}
        say(json.dumps(plain(summary | outcome), allow_nan=False))
        return
    counts = ", ".join(f"{n} by {name}" for name, n in summary["labels"].items())
    say(f"new labels: {counts or 'none'}; run the same command to continue")
    for reason, n in summary["excluded"].items():
        say(f"{n} pairs excluded: {reason}", err=True)
    for line in outcome_lines(compared):
        say(line)


@options_of(BrowseConfig)
def browse(
    given: dict[str, Any],
    store: StoreOption = DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the links as JSON lines.")] = False,
) -> None:
    """Open pages to look through pairs, scores, labels and reports, read-only. Ctrl-C ends it.

    Example: prefloop browse --store prefloop-store
    """
    from ...store.pairstore import PairStore
    from .browse import browse as serve_browse

    config = BrowseConfig(**given)
    opened = PairStore.open(store)

    def announce(link: str) -> None:
        say(json.dumps({"link": link}) if as_json else f"link, works once: {link}")

    serve_browse(config, opened, announce)


def raters(
    store: StoreOption = DEFAULT,
    queue: Annotated[
        Optional[str], typer.Option(help="Measure only labels of these pairs: a queue of `prefloop label`, or a query.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the people who label: position bias, ties, repeats, time, agreement, and who may answer at random.

    Example: prefloop raters --store prefloop-store
    """
    from ...store.pairstore import PairStore
    from ...store.query import WIDTH, write
    from .queue import pairs_to_label
    from .rater_text import alpha_line, between_columns, in_two_tables, rater_columns, rater_notes
    from .raters import raters as measure

    opened = PairStore.open(store)
    result = measure(opened, None if queue is None else pairs_to_label(opened, LabelConfig(queue=queue)))
    if as_json:
        answer(asdict(result))
        return
    if not result.raters:
        say("no person has labelled these pairs; `prefloop label` opens a page for it")
        return
    import pyarrow as pa

    alone, with_others = in_two_tables(rater_columns(result))
    for rows in filter(None, (alone, with_others, between_columns(result))):
        sys.stdout.flush()
        write(pa.Table.from_pylist(rows), "table", sys.stdout.buffer, WIDTH)
        sys.stdout.buffer.flush()
    say("\n".join([alpha_line(result), *rater_notes(result)]))
