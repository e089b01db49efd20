"""Export the selected labels to a folder."""

from functools import partial

import pyarrow as pa

from ...core.files import atomic_folder, refuse_existing
from ..pairstore import PairStore
from .card import card
from .config import ExportConfig
from .flow_factory import write_flow_factory
from .folders import write_folders
from .hf_datasets import write_datasets
from .pickapic import write_pickapic
from .select import selected_labels
from .tables import write_csv, write_jsonl
from .trainers import SETTINGS
from .webdataset import write_webdataset

_WRITERS = {
    "pickapic": write_pickapic,
    "datasets": write_datasets,
    "webdataset": write_webdataset,
    "folders": write_folders,
    "simpletuner": partial(write_folders, form="simpletuner"),
    "kohya": partial(write_folders, form="kohya"),
    "flow-factory": write_flow_factory,
    "csv": lambda folder, rows, _: write_csv(folder, rows),
    "jsonl": lambda folder, rows, _: write_jsonl(folder, rows),
}


def export_pairs(config: ExportConfig, store: PairStore) -> dict:
    """Write the selected labels as one folder, with a README.md that says where they came from.

    Returns:
        Counts: labels, pairs, prompts, labelers.

    Raises:
        UsageError: if the folder exists, or the selection cannot be used.
        IntegrityError: if an image is missing or has changed; nothing is left behind then.
    """
    refuse_existing(config.output_dir)
    rows = selected_labels(store, config)
    with atomic_folder(config.output_dir, _image_bytes(store, rows, config.format)) as folder:
        (folder / "README.md").write_text(card(store, rows, config), "utf-8")
        _WRITERS[config.format](folder, rows, store)
        if config.format in SETTINGS:
            name, text = SETTINGS[config.format](config.output_dir.absolute())
            (folder / name).write_text(text, "utf-8")
    return {"labels": rows.num_rows} | {
        name: len(rows[column].unique())
        for name, column in (("pairs", "pair_id"), ("prompts", "prompt_id"), ("labelers", "labeler"))
    }


def _image_bytes(store: PairStore, rows: pa.Table, form: str) -> int:
    """Total size of the images, each counted as often as it is written."""
    if form in ("csv", "jsonl"):
        return 0
    sizes = {str(image): n for image, n in store.rows("select image_id, n_bytes from images")}
    ids = rows["image_a"].to_pylist() + rows["image_b"].to_pylist()
    return sum(sizes[image] for image in (set(ids) if form == "flow-factory" else ids))
