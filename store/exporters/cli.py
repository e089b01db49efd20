"""`prefloop store export`."""

from typing import Annotated, Any, Optional

import typer

from ...core.cli import (
    DEFAULT,
    JsonOption,
    OutputDirArgument,
    OutputDirOption,
    StoreOption,
    folder_to_write,
    options_of,
    say,
)
from ...core.document import answer
from ...core.text import plural
from .. import completion
from .config import FORMATS, ExportConfig


@options_of(ExportConfig, skip=("output_dir",), values={"labelers": completion.labelers, "format": lambda _: FORMATS})
def export(
    given: dict[str, Any],
    out: OutputDirArgument = None,
    output_dir: OutputDirOption = None,
    store: StoreOption = DEFAULT,
    push_to_hub: Annotated[Optional[str], typer.Option(help="Upload the folder to this dataset repository.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write labelled pairs as a dataset, with a card that says where they came from.

    Example: prefloop store export --output-dir pairs --format datasets --where "margin > 1"
    """
    from ..pairstore import PairStore
    from .push import push, refuse_without_hub
    from .run import export_pairs
    from .trainers import refuse_local_paths

    folder = folder_to_write(output_dir, out)
    config = ExportConfig(output_dir=folder, **given)
    opened = PairStore.open(store)
    if push_to_hub:
        refuse_local_paths(config.format)
        refuse_without_hub(folder, push_to_hub)
    summary = export_pairs(config, opened)
    if push_to_hub:
        summary["address"] = push(folder, push_to_hub)
    if as_json:
        answer(summary)
    else:
        say(f"{plural(summary['labels'], 'label')} of {plural(summary['pairs'], 'pair')} in {folder}")
