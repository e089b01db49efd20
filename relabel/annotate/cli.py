"""`prefloop label` and `prefloop browse`."""

import json
from typing import Annotated, Any

import typer

from ...core.cli import DEFAULT, StoreOption, options_of, say
from ...store.pairstore import PairStore
from .config import BrowseConfig, LabelConfig


@options_of(LabelConfig, panels={"Server": "host port allow_hosts"})
def label(
    given: dict[str, Any],
    store: StoreOption = DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print links and summary as lines of JSON.")] = False,
) -> None:
    """Open a page on which people choose between two pictures. Ctrl-C ends it; every answer is kept at once.

    Example: prefloop label --queue fights --labeler me
    """
    run_label(LabelConfig(**given), PairStore.open(store), as_json=as_json)


def run_label(config: LabelConfig, store: PairStore, *, as_json: bool = False) -> None:
    """Serve the labelling page and say what came of it."""
    from .label import label as serve_label

    def announce(link: str, name: str | None) -> None:
        who = f"for {name}" if name else "for a labeler"
        say(json.dumps({"link": link, "labeler": name}) if as_json else f"{who}, works once: {link}")

    summary = serve_label(config, store, announce)
    if as_json:
        say(json.dumps(summary))
        return
    counts = ", ".join(f"{n} by {name}" for name, n in summary["labels"].items())
    say(f"new labels: {counts or 'none'}; the same command goes on")
    for reason, n in summary["left_out"].items():
        say(f"{n} pairs left out: {reason}", err=True)


@options_of(BrowseConfig)
def browse(
    given: dict[str, Any],
    store: StoreOption = DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print links as lines of JSON.")] = False,
) -> None:
    """Open pages to look through pairs, scores, labels and reports. Nothing can be changed there; Ctrl-C ends it.

    Example: prefloop browse --store prefloop-store
    """
    config = BrowseConfig(**given)
    opened = PairStore.open(store)
    from .browse import browse as serve_browse

    def announce(link: str) -> None:
        say(json.dumps({"link": link}) if as_json else f"works once: {link}")

    serve_browse(config, opened, announce)
