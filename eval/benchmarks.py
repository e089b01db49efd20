"""Benchmarks: a set of prompts with images per prompt, scorers and sampling, as a TOML file of options of `eval`."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from ..core import recipes as shipped
from ..core.errors import UsageError
from ..core.recipes import find_recipe
from ..core.settings import read_toml, settings_of
from .config import EvalConfig

_FOLDER = Path(str(files("prefloop.eval").joinpath("benchmarks")))
_OF_THE_MODEL = ("models", "sweep", "baseline", "name", "output_dir")


def benchmarks() -> dict[str, str]:
    """The name of each benchmark and the first line of its file."""
    return shipped.recipes(_FOLDER)


def read_benchmark(name: str) -> dict[str, Any]:
    """Options of `eval` from a benchmark or a TOML file, by the names of EvalConfig's fields.

    Raises:
        UsageError: if the benchmark or file does not exist, is not TOML, names a model, or sets an unknown option.
        PrefloopError: if it cannot be read.
    """
    path = find_recipe(_FOLDER, name, "benchmark")
    settings = settings_of(path, read_toml(path), EvalConfig, "eval")
    if "prompts" not in settings:
        raise UsageError(f"{path} sets no prompts, which a benchmark needs")
    if named := [key for key in _OF_THE_MODEL if key in settings]:
        raise UsageError(
            f"{path} sets {named[0]}, which belongs to the models that are compared; give it on the command line"
        )
    return settings
