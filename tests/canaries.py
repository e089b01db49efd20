"""Checkpoint folders whose settings name code to run: a module that leaves a mark when it is imported, and every key that
could make a loader import it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

MODULE, CLASS = "canary", "Canary"
How = Literal["local", "elsewhere"]
HOW: tuple[How, ...] = ("local", "elsewhere")
"""Where the module is: in the checkpoint folder itself, or in another folder that the settings name."""

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
"""Files that loaders look for beside weights; created if the folder has none."""

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
    """The planted module."""

    mark: Path
    reference: str
    """How settings name its class: module.Class, or FOLDER--module.Class."""

    @property
    def imported(self) -> bool:
        return self.mark.exists()

    def auto_map(self) -> dict[str, Any]:
        """For every auto class of transformers; a tokenizer is a pair, slow and fast."""
        return {
            name: [self.reference, self.reference] if name == "AutoTokenizer" else self.reference
            for name in AUTO_CLASSES
        }

    def keys(self) -> dict[str, Any]:
        """Keys that may be in any settings file."""
        return {
            "auto_map": self.auto_map(),
            "trust_remote_code": True,
            "custom_pipelines": {"text-to-image": {"impl": self.reference, "pt": ["AutoModel"]}},
            "tokenizer_kwargs": {"trust_remote_code": True},
        }


def canary(folder: Path, how: How) -> Canary:
    """Write the module alone, in the folder or beside it."""
    location = folder if how == "local" else folder.with_name(f"{folder.name}-elsewhere")
    location.mkdir(parents=True, exist_ok=True)
    mark = folder.with_name(f"{folder.name}-imported")
    (location / f"{MODULE}.py").write_text(_SOURCE.format(mark=str(mark), name=CLASS))
    reference = f"{MODULE}.{CLASS}"
    return Canary(mark, reference if how == "local" else f"{location}--{reference}")


def plant(folder: Path, how: How, change: Callable[[Path, dict[str, Any], Canary], None] | None = None) -> Canary:
    """Write the module and make every settings file of the folder name it, creating those that loaders look for.

    Args:
        change: called with the path and content of each settings file and the canary, to add keys for that file only.
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
