"""Settings from a file: the recipes that come with the package, or the user's own."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..core import recipes as shipped
from ..core.recipes import find_recipe
from ..core.settings import read_toml, settings_of
from .config import RENAMED, TrainConfig
from .methods import METHODS

_FOLDER = Path(str(files("prefloop.train").joinpath("recipes")))


def recipes() -> dict[str, str]:
    """The name of each recipe and the first line of its file."""
    return shipped.recipes(_FOLDER)


def read_settings(name: str) -> dict[str, Any]:
    """Settings from a recipe or a TOML file, by the names of TrainConfig's fields.

    Raises:
        UsageError: if the recipe or file does not exist, is not TOML, or sets an unknown option.
        PrefloopError: if it cannot be read.
    """
    path = find_recipe(_FOLDER, name)
    return settings_of(path, read_toml(path), TrainConfig, "train", RENAMED)


def merge_settings(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A file's settings, overridden by those given on the command line.

    A file's beta belongs to its loss: it is dropped if the command line gives a loss with another default beta.
    """
    merged = {**settings, **given}
    if "beta" not in given and _default_beta(settings) != _default_beta(merged):
        merged.pop("beta", None)
    return merged


def _default_beta(settings: Mapping[str, Any]) -> float | None:
    method = METHODS.get(settings.get("loss", TrainConfig.loss))
    return None if method is None else method.beta
