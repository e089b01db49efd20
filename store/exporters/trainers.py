"""The settings by which a trainer finds the two folders of an export. They name the folder by its absolute path."""

import json
from pathlib import Path

from ...core.errors import UsageError
from ...core.text import json_text
from .folders import LAYOUTS


def simpletuner_settings(out: Path) -> tuple[str, str]:
    """SimpleTuner's dataloader configuration for Flow-DPO: the rejected images are the references of the chosen ones.

    The ids contain the folder's name, because SimpleTuner caches latents by a dataset's id and a file's name.

    Returns:
        File name and text.
    """
    chosen, rejected = LAYOUTS["simpletuner"].folders
    # both have captions: SimpleTuner falls back to file names for a dataset without a caption_strategy
    shared = {"type": "local", "caption_strategy": "textfile", "disable_multiline_split": True}
    datasets = [
        {
            "id": f"{out.name}-{chosen}",
            "dataset_type": "image",
            "instance_data_dir": str(out / chosen),
            "conditioning_data": [f"{out.name}-{rejected}"],
            **shared,
        },
        {
            "id": f"{out.name}-{rejected}",
            "dataset_type": "conditioning",
            "conditioning_type": "reference_strict",
            "instance_data_dir": str(out / rejected),
            "source_dataset_id": f"{out.name}-{chosen}",
            **shared,
        },
    ]
    return "multidatabackend.json", json_text(datasets, indent=2) + "\n"


def kohya_settings(out: Path) -> tuple[str, str]:
    """`--dataset_config` of kohya's sd-scripts with preference pairs (kohya-ss/sd-scripts#1427).

    Returns:
        File name and text.
    """
    lines = [
        "[[datasets]]",
        "",
        "  [[datasets.subsets]]",
        f"  image_dir = {json.dumps(str(out), ensure_ascii=False)}",
        f"  caption_extension = {json.dumps(LAYOUTS['kohya'].caption)}",
        "  preference = true",
    ]
    return "dataset_config.toml", "\n".join(lines) + "\n"


SETTINGS = {"simpletuner": simpletuner_settings, "kohya": kohya_settings}


def refuse_local_paths(form: str) -> None:
    """Raise UsageError if an export in this format is of use only on this machine."""
    if form in SETTINGS:
        raise UsageError(
            f"the format {form} names folders of this machine, so it cannot be uploaded; leave out --push-to-hub, or "
            "give another --format, such as datasets"
        )
