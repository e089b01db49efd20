"""TOML files that come with a package, each named by its stem and described by its first line."""

import os
from pathlib import Path

from .errors import UsageError, reading


def recipes(folder: Path) -> dict[str, str]:
    """The name of each file and its first line."""
    return {path.stem: path.read_text().split("\n", 1)[0].lstrip("# ") for path in sorted(folder.glob("*.toml"))}


def find_recipe(folder: Path, name: str, kind: str = "recipe") -> Path:
    """The path of a recipe in the folder, or of the user's own file.

    Args:
        kind: what the files are, for messages.

    Raises:
        UsageError: if neither exists.
        PrefloopError: if the file cannot be read.
    """
    if name in recipes(folder):
        return folder / f"{name}.toml"
    path = Path(os.path.expanduser(name))
    with reading(path):
        is_folder, is_file = path.is_dir(), path.is_file()
    if is_folder:
        raise UsageError(f"{name} is a folder; name a {kind} or a TOML file")
    if not is_file:
        raise UsageError(f"no file and no {kind} is called {name!r}; {kind}s are {', '.join(recipes(folder))}")
    return path
