"""Folders of weights whose settings name code to run: a module that leaves a mark when it is imported, and every key by
which some loader could be led to it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

MODULE, CLASS = "canary", "Canary"
How = Literal["local", "elsewhere"]
HOW: tuple[How, ...] = ("local", "elsewhere")
"""Where the module lies: in the folder of weights itself, or in another folder that the settings name."""

AUTO_CLASSES = (
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForZeroShotImageClassification",
    "AutoModelForImageTextToText",
    "AutoTokenizer",
    "AutoProcessor",
    "AutoImageProcessor",
    "AutoImageProcessorFast",
    "AutoFeatureExtractor",
    "AutoVideoProcessor",
)
SETTINGS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
"""Files that loaders look for beside weights, and that are made where a folder has none."""

_SOURCE = """
import pathlib
with open({mark!r}, "a") as file:
    file.write(__name__ + chr(10))
class {name}:
    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        return cls()
    @classmethod
    def register_for_auto_class(cls, *args, **kwargs):
        return None
"""


@dataclass(frozen=True)
class Canary:
    """A module that was planted."""

    mark: Path
    reference: str
    """How settings name its class: module.Class, or FOLDER--module.Class."""

    @property
    def imported(self) -> bool:
        return self.mark.exists()

    def auto_map(self) -> dict[str, Any]:
        """For every class of transformers that looks itself up by name; a tokenizer is a pair, slow and fast."""
        return {
            name: [self.reference, self.reference] if name == "AutoTokenizer" else self.reference
            for name in AUTO_CLASSES
        }

    def keys(self) -> dict[str, Any]:
        """What may stand in any settings file, whoever reads it."""
        return {
            "auto_map": self.auto_map(),
            "trust_remote_code": True,
            "custom_pipelines": {"text-to-image": {"impl": self.reference, "pt": ["AutoModel"]}},
            "tokenizer_kwargs": {"trust_remote_code": True},
        }


def canary(folder: Path, how: How) -> Canary:
    """The module alone, in the folder or beside it."""
    place = folder if how == "local" else folder.with_name(f"{folder.name}-elsewhere")
    place.mkdir(parents=True, exist_ok=True)
    mark = folder.with_name(f"{folder.name}-imported")
    (place / f"{MODULE}.py").write_text(_SOURCE.format(mark=str(mark), name=CLASS))
    reference = f"{MODULE}.{CLASS}"
    return Canary(mark, reference if how == "local" else f"{place}--{reference}")


def plant(folder: Path, how: How, change: Callable[[Path, dict[str, Any], Canary], None] | None = None) -> Canary:
    """Put the module there and have every settings file of the folder name it, and those that loaders would look for.

    Args:
        change: called with each settings file's path, its content and the canary, to add what only that file may hold.
    """
    bird = canary(folder, how)
    for name in SETTINGS:
        if not (folder / name).exists():
            (folder / name).write_text("{}")
    for path in sorted(folder.rglob("*.json")):
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or path.name in ("tokenizer.json", "vocab.json") or "weight_map" in content:
            continue
        content |= bird.keys()
        if change is not None:
            change(path, content, bird)
        path.write_text(json.dumps(content))
    return bird
