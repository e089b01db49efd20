"""The built-in world: images of colored shapes, a small trained pipeline, small scorers, and the code that made them."""

from importlib.resources import files
from pathlib import Path

WEIGHTS = Path(str(files("prefloop.shapes") / "weights"))
PIPELINE = WEIGHTS / "pipeline"
FLOW_PIPELINE = WEIGHTS / "pipeline-flow"


def prompt_file(which: str = "train") -> Path:
    """A file of JSON lines with `prompt` and tags; `which` is "train" or "heldout"."""
    return Path(str(files("prefloop.shapes") / "prompts" / f"{which}.jsonl"))
