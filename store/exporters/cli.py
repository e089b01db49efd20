"""`prefloop store export`."""

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..cli import DEFAULT, StoreOption, say
from ..pairstore import PairStore


def export(
    out: Annotated[Path, typer.Argument(help="Folder to be made.")],
    store: StoreOption = DEFAULT,
    form: Annotated[
        str, typer.Option("--format", help="pickapic, datasets, webdataset, folders, csv or jsonl.")
    ] = "datasets",
    labels: Annotated[Optional[list[str]], typer.Option(help="Labeler; may be given again. All if not given.")] = None,
    where: Annotated[Optional[str], typer.Option(help="A condition in SQL over the view preferences.")] = None,
    push_to_hub: Annotated[Optional[str], typer.Option(help="Send the folder to this data set of the hub.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Write labelled pairs as a data set, with a card that says where they came from.

    Example: prefloop store export pairs --format datasets --where "margin > 1"
    """
    from .config import ExportConfig
    from .push import push, refuse_without_hub
    from .run import export_pairs

    config = ExportConfig(out=out, format=form, labels=tuple(labels or ()), where=where)
    opened = PairStore.open(store)
    if push_to_hub:
        refuse_without_hub(out, push_to_hub)
    summary = export_pairs(config, opened)
    if push_to_hub:
        summary["address"] = push(out, push_to_hub)
    line = f"{summary['labels']} labels of {summary['pairs']} pairs in {out}"
    say(json.dumps(summary) if as_json else line)
