"""`prefloop store import`."""

import json
from typing import Annotated, Optional

import typer

from ...core.errors import UsageError
from ..cli import DEFAULT, StoreOption, say
from ..pairstore import PairStore


def import_(
    source: Annotated[str, typer.Argument(help="A file, a folder, or a data set's hub id.")],
    store: StoreOption = DEFAULT,
    form: Annotated[
        str,
        typer.Option(
            "--format", help="auto, pickapic, preferences, hpd, imagereward, folders, jsonl, webdataset or table."
        ),
    ] = "auto",
    columns: Annotated[
        Optional[list[str]], typer.Option("--map", help="OURS=THEIRS: which column is prompt, chosen, rejected, …")
    ] = None,
    labeler: Annotated[Optional[str], typer.Option(help="Who decided, where the data name nobody.")] = None,
    limit: Annotated[Optional[int], typer.Option(help="Read the first so many rows.")] = None,
    where: Annotated[Optional[str], typer.Option(help="A condition in SQL on the source's columns.")] = None,
    max_bad: Annotated[
        float, typer.Option(help="Share of pairs that may be unreadable before the exit code is 3.")
    ] = 0.01,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be imported, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Import preference pairs. Only what the store lacks is kept; the same command goes on after a kill.

    Example: prefloop store import pickapic.parquet --store prefloop-store
    """
    from .config import ImportConfig
    from .formats import open_source
    from .preview import preview
    from .run import import_pairs, refuse_bad

    config = ImportConfig(
        source=source,
        format=form,
        map=dict(_named(column) for column in columns or ()),
        labeler=labeler,
        limit=limit,
        where=where,
        max_bad=max_bad,
    )
    opened = open_source(config)  # before a store is made, so that a mistyped source leaves nothing behind
    if dry_run:
        summary = preview(opened)
        line = "{format}: {rows} rows, labels of {labeler}; of the first {read} pairs {usable} can be used; nothing was kept"
        line = line.format_map(summary)
    else:
        summary = import_pairs(config, opened, PairStore.create(store))
        left_out = "".join(f"; left out: {n} {reason}" for reason, n in sorted(summary["left_out"].items()))
        line = (
            f"{summary['pairs']} pairs of {summary['format']}, {summary['new_pairs']} of them new, "
            f"{summary['new_labels']} new labels of {summary['labeler']}{left_out}; store: {store}"
        )
        if not summary["new_pairs"] and not summary["new_labels"]:
            line = f"nothing to do: {line}"
    say(json.dumps(summary) if as_json else line)
    for example in summary["examples"]:
        say(example, err=True)
    refuse_bad(summary, max_bad)


def _named(column: str) -> tuple[str, str]:
    ours, equals, theirs = column.partition("=")
    if not equals or not ours or not theirs:
        raise UsageError(f"--map takes OURS=THEIRS, such as prompt=caption, got {column!r}")
    return ours, theirs
