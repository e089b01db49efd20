"""`prefloop label` and `prefloop browse`."""

import json
from typing import Annotated, Optional

import typer

from ...store.cli import DEFAULT, StoreOption, say
from ...store.pairstore import PairStore
from .config import BrowseConfig, LabelConfig

_HOST = "Address to listen on; 0.0.0.0 lets others of the network in, unencrypted."
_PORT = "Port to listen on; 0 is any that is free."
_ALLOW = "A further name under which browsers reach it, such as a proxy's."


def label(
    pairs: Annotated[
        str,
        typer.Option(
            help="Which pairs, in order: random, fights (scorers disagree), close (smallest margins), eval, "
            "or a query that gives pair_id."
        ),
    ] = LabelConfig.pairs,
    labeler: Annotated[
        Optional[list[str]],
        typer.Option(help="Who labels; again for several, each with a link. If not given, the page asks."),
    ] = None,
    store: StoreOption = DEFAULT,
    limit: Annotated[Optional[int], typer.Option(help="The first so many pairs of the queue.")] = LabelConfig.limit,
    overlap: Annotated[int, typer.Option(help="How many people decide each pair.")] = LabelConfig.overlap,
    repeats: Annotated[
        float,
        typer.Option(help="Share of pairs shown to the same person again, to see how they agree with themselves."),
    ] = LabelConfig.repeats,
    seed: Annotated[int, typer.Option(help="Of the random order, the sides and the repeats.")] = LabelConfig.seed,
    host: Annotated[str, typer.Option(help=_HOST)] = LabelConfig.host,
    port: Annotated[int, typer.Option(help=_PORT)] = LabelConfig.port,
    allow_host: Annotated[Optional[list[str]], typer.Option(help=_ALLOW)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print links and summary as lines of JSON.")] = False,
) -> None:
    """Open a page on which people choose between two pictures. Ctrl-C ends it; every answer is kept at once.

    Example: prefloop label --pairs fights --labeler me
    """
    config = LabelConfig(
        pairs=pairs,
        labelers=tuple(labeler or ()),
        limit=limit,
        overlap=overlap,
        repeats=repeats,
        seed=seed,
        host=host,
        port=port,
        allow_hosts=tuple(allow_host or ()),
    )
    run_label(config, PairStore.open(store), as_json=as_json)


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


def browse(
    store: StoreOption = DEFAULT,
    host: Annotated[str, typer.Option(help=_HOST)] = BrowseConfig.host,
    port: Annotated[int, typer.Option(help=_PORT)] = BrowseConfig.port,
    allow_host: Annotated[Optional[list[str]], typer.Option(help=_ALLOW)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print links as lines of JSON.")] = False,
) -> None:
    """Open pages to look through pairs, scores, labels and reports. Nothing can be changed there; Ctrl-C ends it.

    Example: prefloop browse --store prefloop-store
    """
    config = BrowseConfig(host=host, port=port, allow_hosts=tuple(allow_host or ()))
    opened = PairStore.open(store)
    from .browse import browse as serve_browse

    def announce(link: str) -> None:
        say(json.dumps({"link": link}) if as_json else f"works once: {link}")

    serve_browse(config, opened, announce)
