"""`prefloop store import`."""

import shlex
from typing import Annotated, Any

import typer

from ...core.cli import DEFAULT, JsonOption, StoreOption, options_of, say
from ...core.document import answer
from ...core.text import plural
from .config import ImportConfig, columns_of


@options_of(ImportConfig, names={"map": "--map"}, parsers={"map": columns_of}, skip=("source",))
def import_(
    given: dict[str, Any],
    source: Annotated[str, typer.Argument(help="A file, a folder, or a dataset's hub id.")],
    store: StoreOption = DEFAULT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be imported, and exit.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Import preference pairs, images in two folders, or images without labels. What the store has is skipped.

    The two folders are FOLDER/good and FOLDER/bad, with a .txt beside each image or one --prompt for all.

    The same command continues an interrupted import.

    Example: prefloop store import pickapic.parquet --store prefloop-store
    """
    from ..pairstore import PairStore
    from .formats import open_source
    from .preview import preview
    from .run import import_pairs, refuse_unreadable

    config = ImportConfig(source=source, **given)
    opened = open_source(config)  # before a store is created, so that a mistyped source leaves nothing behind
    if dry_run:
        summary = preview(opened)
        rows = "unknown number of rows" if summary["rows"] is None else plural(summary["rows"], "row")
        what, by = ("image", "no labels") if opened.labeler is None else ("pair", f"labels by {_labelers(summary)}")
        line = (
            f"{summary['format']}: {rows}, {by}; {summary['usable']} of the first {plural(summary['read'], what)} can be "
            "used; nothing was imported"
        )
    else:
        summary = import_pairs(config, opened, PairStore.create(store))
        excluded = "".join(f"; excluded: {n} {reason}" for reason, n in sorted(summary["excluded"].items()))
        line = (
            _images_line(summary)
            if opened.labeler is None
            else f"{plural(summary['pairs'], 'pair')} from {summary['format']}, {summary['new_pairs']} of them new, "
            f"{plural(summary['new_labels'], 'new label')} by {_labelers(summary)}"
        )
        line += f"{excluded}; store: {store}"
        if not summary["new_pairs"] and not summary["new_labels"] and not summary["new_generations"]:
            line = f"nothing to do: {line}"
    if as_json:
        answer(summary)
    else:
        say(line)
    if not dry_run and not as_json:
        if opened.labeler is None:
            say(f"next: `prefloop pair --store {store}`")
        elif opened.format == "folders":
            train = f"prefloop train --config sd15-lora --labeler {shlex.quote(opened.labeler)} --store {store}"
            say(f"next: `{train} --output-dir my-taste`, see docs/for-artists.md")
    for example in summary["examples"]:
        say(example, err=True)
    refuse_unreadable(summary, config.max_unreadable)


def _labelers(summary: dict) -> str:
    """Those that the data names, or the source's own if no label could be read."""
    return " and ".join(summary["labelers"] or [summary["labeler"]])


def _images_line(summary: dict) -> str:
    n = summary.get("images", 0)
    return (
        f"{plural(n, 'image')} without labels, {summary['new_generations']} of them new, "
        f"{plural(summary['new_prompts'], 'new prompt')}"
    )
