"""`prefloop store export`."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ...core.cli import DEFAULT, JsonOption, StoreOption, options_of, say
from ...core.document import answer
from ...core.text import plural
from ..pairstore import PairStore
from .config import ExportConfig


@options_of(ExportConfig, skip=("out",))
def export(
    given: dict[str, Any],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    store: StoreOption = DEFAULT,
    push_to_hub: Annotated[Optional[str], typer.Option(help="Upload the folder to this dataset repository.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write labeled pairs as a dataset, with a card that says where they came from.

    Example: prefloop store export pairs --format datasets --where "margin > 1"
    """
    from .push import push, refuse_without_hub
    from .run import export_pairs
    from .trainers import refuse_local_paths

    config = ExportConfig(out=out, **given)
    opened = PairStore.open(store)
    if push_to_hub:
        refuse_local_paths(config.format)
        refuse_without_hub(out, push_to_hub)
    summary = export_pairs(config, opened)
    if push_to_hub:
        summary["address"] = push(out, push_to_hub)
    if as_json:
        answer(summary)
    else:
        say(f"{plural(summary['labels'], 'label')} of {plural(summary['pairs'], 'pair')} in {out}")
