"""Settings from a file: the recipes that ship with the package, or the user's own."""

import tomllib
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..core.errors import PrefloopError, UsageError
from .config import RENAMED, TrainConfig

_FOLDER = Path(str(files("prefloop.train").joinpath("recipes")))


def recipes() -> dict[str, str]:
    """The name of each recipe that ships, and what its first line says."""
    found = {}
    for path in sorted(_FOLDER.glob("*.toml")):
        found[path.stem] = path.read_text().split("\n", 1)[0].lstrip("# ")
    return found


def read_settings(name: str) -> dict[str, Any]:
    """The settings of a recipe by its name, or of a TOML file, by the names of TrainConfig's fields.

    Raises:
        UsageError: where there is no such recipe or file, it is no TOML, or it names an option that there is not.
        PrefloopError: where it cannot be read.
    """
    path = Path(name).expanduser() if name not in recipes() else _FOLDER / f"{name}.toml"
    if not path.is_file():
        raise UsageError(f"there is no file and no recipe {name!r}; recipes are {', '.join(recipes())}")
    try:
        settings = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is no TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise PrefloopError(f"{path} cannot be read: {error}") from error
    settings = {RENAMED.get(name := key.replace("-", "_"), name): value for key, value in settings.items()}
    known = {f.name: f.type.__name__ if isinstance(f.type, type) else str(f.type) for f in fields(TrainConfig)}
    for key, value in settings.items():
        if key not in known:
            raise UsageError(f"{path} sets {key!r}, which is no option of train; `prefloop train --help` lists them")
        _refuse_type(path, key, value, known[key])
    if isinstance(settings.get("labelers"), list):
        settings["labelers"] = tuple(settings["labelers"])
    return settings


def _refuse_type(path: Path, key: str, value: Any, wanted: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": number,
        "tuple[str, ...]": isinstance(value, list) and all(isinstance(item, str) for item in value),
    }.get(wanted.removesuffix(" | None"), isinstance(value, str))
    if not fits:
        raise UsageError(f"{path} sets {key} to {value!r}, which is no {wanted.removesuffix(' | None')}")
