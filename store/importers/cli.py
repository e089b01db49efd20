"""`prefloop store import`."""

import json
from typing import Annotated, Any

import typer

from ...core.cli import DEFAULT, StoreOption, options_of, say
from ..pairstore import PairStore
from .config import ImportConfig, columns_of


@options_of(ImportConfig, names={"map": "--map"}, parsers={"map": columns_of}, skip=("source",))
def import_(
    given: dict[str, Any],
    source: Annotated[str, typer.Argument(help="A file, a folder, or a dataset's hub id.")],
    store: StoreOption = DEFAULT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be imported, and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Import preference pairs. Only what the store lacks is kept; the same command goes on after a kill.

    Example: prefloop store import pickapic.parquet --store prefloop-store
    """
    from .formats import open_source
    from .preview import preview
    from .run import import_pairs, refuse_bad

    config = ImportConfig(source=source, **given)
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
    refuse_bad(summary, config.max_unreadable)
