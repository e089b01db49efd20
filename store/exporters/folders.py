"""Two folders with a file of the same name for each pair, and a caption beside each image, as other trainers read them."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ...core.errors import UsageError
from ..images import format_of
from ..pairstore import PairStore
from .select import chosen_and_rejected, with_images
from .shards import slices

_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Layout:
    folders: tuple[str, str] = ("chosen", "rejected")
    caption: str = ".txt"
    """Extension of the captions."""
    one_extension: bool = False
    """The trainer looks for the rejected image under the chosen one's whole name, and decodes by content."""
    first_line_only: bool = False
    """The trainer reads only the first line of a caption."""


LAYOUTS = {
    "folders": Layout(),
    "simpletuner": Layout(one_extension=True),
    "kohya": Layout(folders=("w", "l"), caption=".caption", one_extension=True, first_line_only=True),
}


def write_folders(folder: Path, rows: pa.Table, store: PairStore, form: str = "folders") -> None:
    """
    Raises:
        UsageError: if labels of several labelers are selected, as these formats hold one label per pair; or if the trainer
            would read only the first line of a prompt.
    """
    layout = LAYOUTS[form]
    labelers = sorted(set(rows["labeler"].to_pylist()))
    if len(labelers) > 1:
        raise UsageError(
            f"the format {form} holds the labels of one labeler; give --labeler with one of {', '.join(labelers)}"
        )
    if layout.first_line_only:
        _refuse_several_lines(rows, form)
    for side in layout.folders:
        (folder / side).mkdir()
    for part in slices(rows, _ROWS):
        for row, a, b in with_images(store, part):
            images = chosen_and_rejected(row, a, b)
            for side, data in zip(layout.folders, images, strict=True):
                extension = format_of(images[0] if layout.one_extension else data)
                (folder / side / f"{row['pair_id']}.{extension}").write_bytes(data)
                (folder / side / f"{row['pair_id']}{layout.caption}").write_text(row["prompt"], "utf-8", newline="")


def _refuse_several_lines(rows: pa.Table, form: str) -> None:
    for prompt in rows["prompt"].unique().to_pylist():
        if "\n" in prompt or "\r" in prompt:
            raise UsageError(
                f"the prompt {prompt[:40]!r} has several lines, and the trainers of the format {form} read only the first; "
                "exclude such prompts with --where \"not regexp_matches(prompt, '[\\n\\r]')\""
            )
