"""Settings from a file: the recipes that come with the package, or the user's own."""

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..core.errors import PrefloopError, UsageError
from .config import RENAMED, TrainConfig
from .methods import METHODS

_FOLDER = Path(str(files("prefloop.train").joinpath("recipes")))
_TYPES = {"bool": "true or false", "int": "an integer", "float": "a number", "str": "a string"}
_LABELERS = "a string or a list of strings"


def recipes() -> dict[str, str]:
    """The name of each recipe and the first line of its file."""
    return {path.stem: path.read_text().split("\n", 1)[0].lstrip("# ") for path in sorted(_FOLDER.glob("*.toml"))}


def read_settings(name: str) -> dict[str, Any]:
    """Settings from a recipe or a TOML file, by the names of TrainConfig's fields.

    Raises:
        UsageError: if the recipe or file does not exist, is not TOML, or sets an unknown option.
        PrefloopError: if it cannot be read.
    """
    path = Path(name).expanduser() if name not in recipes() else _FOLDER / f"{name}.toml"
    if not path.is_file():
        raise UsageError(f"no file and no recipe is called {name!r}; recipes are {', '.join(recipes())}")
    try:
        options = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise PrefloopError(f"{path} cannot be read: {error}") from error
    types = {f.name: f.type.__name__ if isinstance(f.type, type) else str(f.type) for f in fields(TrainConfig)}
    settings: dict[str, Any] = {}
    for key, value in options.items():
        option = key.replace("-", "_")
        setting = "labelers" if option == "labeler" else RENAMED.get(option, option)
        if setting not in types:
            raise UsageError(f"{path} sets {key!r}, which is not an option; `prefloop train --help` lists them")
        if setting in settings:
            raise UsageError(f"{path} sets {setting} twice, the second time as {key}; remove one")
        settings[setting] = _value(path, key, value, types[setting].removesuffix(" | None"))
    return settings


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


def _value(path: Path, key: str, value: Any, type_name: str) -> Any:
    if type_name == "tuple[str, ...]":
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise UsageError(f"{path} sets {key} to {value!r}, which is not {_LABELERS}")
    fits = {
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, int | float) and not isinstance(value, bool),
    }.get(type_name, isinstance(value, str))
    if not fits:
        raise UsageError(f"{path} sets {key} to {value!r}, which is not {_TYPES.get(type_name, _TYPES['str'])}")
    return value
