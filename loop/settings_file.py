"""Settings of a loop from a TOML file, and those that a loop began with, kept in its folder."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..core import recipes as shipped
from ..core.errors import IntegrityError, UsageError, cannot_write
from ..core.files import write_atomic
from ..core.ids import canonical, content_id
from ..core.json import plain
from ..core.locks import locked
from ..core.recipes import find_recipe
from ..core.settings import parse_option, read_toml, settings_of
from ..eval.config import RENAMED as EVAL_RENAMED
from ..relabel.judges.request_limits import LIMITS
from ..train.config import RENAMED
from ..train.defaults import describe_sources, resolve_settings, sources
from ..train.recipes import merge_settings, read_settings
from .config import STAGES, LoopConfig, LoopSettings

_RECIPES = Path(str(files("prefloop.loop").joinpath("recipes")))
_SECTIONS = {"loop": LoopConfig, **STAGES}
SETTINGS = "loop.json"
_RENAMED = {"loop": {"dir": "output_dir"}, "train": RENAMED, "eval": EVAL_RENAMED}
"""Section → earlier name of an option → its name."""
_AUTOMATIC = {"validation_steps": None, "gradient_checkpointing": "auto"}
"""Option of [train] → its value, if a recipe leaves it to the run."""
# may differ when a loop goes on: where it lies, how much of it is wanted, and what does not affect its results
_MAY_CHANGE = {"loop": ("output_dir", "store", "rounds", "device")}
_MAY_CHANGE |= {"generate": ("device", "workers"), "train": ("device",)}
_MAY_CHANGE |= dict.fromkeys(("relabel", "eval"), ("device", "workers", *LIMITS))


def recipes() -> dict[str, str]:
    """The name of each recipe and the first line of its file."""
    return shipped.recipes(_RECIPES)


def recipe_text(name: str) -> str:
    """
    Raises:
        UsageError: if the recipe does not exist.
    """
    if name not in recipes():
        raise UsageError(f"no recipe is called {name!r}; recipes are {', '.join(recipes())}")
    return (_RECIPES / f"{name}.toml").read_text()


def read_loop(
    name: str | None,
    given: Mapping[str, Any] = {},
    assignments: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> LoopSettings:
    """The settings of a recipe or file, overridden by those given on the command line. [train] is completed by the recipe for the
    loop's model, unless that is a built-in one.

    Args:
        name: a recipe, or a TOML file with the sections loop, generate, relabel, train and eval; None is the defaults. In
            [train], config names a recipe or a file of `train`, whose model is not used.
        given: options of [loop].
        assignments: SECTION.OPTION=VALUE, with values as in TOML; text needs no quotes.
        say: told which settings of [train] are from the recipe for the model.

    Raises:
        UsageError: if the file does not exist or is not TOML, or a section or an option is unknown or has a wrong value.
    """
    sections: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    if name is not None:
        path = find_recipe(_RECIPES, name)
        for section, table in read_toml(path).items():
            if section not in _SECTIONS or not isinstance(table, dict):
                raise UsageError(f"{path} has {section!r}, which is not a section; sections are {_names()}")
            sections[section] = _checked(str(path), section, table)
    assigned: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for assignment in assignments:
        section, option, text = _parts(assignment)
        value = parse_option(text, _SECTIONS[section], _aliases(section).get(option, option))
        settings = _checked(f"--set {assignment}", section, {option: value})
        assigned[section] = settings | assigned[section] if option == "config" else assigned[section] | settings
    for section, settings in assigned.items():
        merge = merge_settings if section == "train" else dict.__or__
        sections[section] = merge(sections[section], settings)
    sections["loop"] |= given
    loop = LoopConfig(**sections.pop("loop"))
    LoopSettings(loop, **sections)  # mistakes are found before the model is looked for
    resolved = resolve_settings({**sections["train"], "model": loop.model})
    if resolved.from_recipe:
        sections["train"] = {setting: value for setting, value in resolved.settings.items() if setting != "model"}
    sections["train"] |= _begun_with(loop, sections["train"])
    settings = LoopSettings(loop, **sections)
    if not resolved.from_recipe:
        return settings
    origins = sources(resolved, {}, None)
    of_recipe = {setting: origin for setting, origin in origins.items() if setting in resolved.from_recipe}
    for line in describe_sources(settings.train_config(1, "labeler"), of_recipe, "--set train.learning_rate=…"):
        say(line)
    return settings


def _begun_with(loop: LoopConfig, train: Mapping[str, Any]) -> dict[str, Any]:
    """What the loop in the folder has for options of [train] that are automatic now: recipes had fixed values before."""
    path = Path(loop.output_dir) / SETTINGS
    if not path.is_file():
        return {}
    begun = _read(path)["train"]
    return {
        name: begun[name]
        for name, automatic in _AUTOMATIC.items()
        if train.get(name) == automatic and begun.get(name) is not None
    }


def _parts(assignment: str) -> tuple[str, str, str]:
    name, equals, text = assignment.partition("=")
    section, dot, option = name.strip().partition(".")
    if not equals or not dot or section not in _SECTIONS:
        raise UsageError(
            f"--set takes SECTION.OPTION=VALUE, such as train.learning_rate=1e-4, got {assignment!r}; sections are {_names()}"
        )
    return section, option.replace("-", "_"), text.strip()


def _names() -> str:
    return ", ".join(_SECTIONS)


def _aliases(section: str) -> Mapping[str, str]:
    return _RENAMED.get(section, {})


def _checked(source: str, section: str, table: Mapping[str, Any]) -> dict[str, Any]:
    table, recipe = dict(table), None
    if section == "train" and "config" in table:
        recipe = read_settings(str(table.pop("config")))
        recipe.pop("model", None)  # the loop's own
    settings = settings_of(f"[{section}] of {source}", table, _SECTIONS[section], section, _aliases(section))
    return settings if recipe is None else merge_settings(recipe, settings)


@contextmanager
def claimed(settings: LoopSettings) -> Iterator[None]:
    """Hold the loop's folder for the duration of the block, if the loop may begin or go on there.

    Raises:
        UsageError: if the folder holds a loop with other settings, or files that no loop wrote.
        BusyError: if another process runs a loop there.
    """
    folder = Path(settings.loop.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder with --output-dir")
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise cannot_write(folder, error) from error
    # a process that was killed may leave the lock and half of the settings
    foreign = {name for name in names if name != ".lock" and not name.startswith(f".{SETTINGS}.")}
    if foreign and SETTINGS not in names:
        raise UsageError(f"{folder} is not empty and holds no loop; name another folder with --output-dir")
    with locked(folder / ".lock", f"the loop {folder}"):
        try:
            if (folder / SETTINGS).exists():
                refuse_differences(settings, _read(folder / SETTINGS), folder)
            yield
        finally:
            if is_new and {path.name for path in folder.iterdir()} <= {".lock"}:  # nothing began
                (folder / ".lock").unlink(missing_ok=True)
                folder.rmdir()


def refuse_early(settings: LoopSettings) -> None:
    """Refuse at once a folder that `claimed` would refuse after seconds of imports."""
    if Path(settings.loop.output_dir).exists():
        with claimed(settings):
            pass


def write_settings(settings: LoopSettings) -> None:
    """Keep the settings in the loop's folder; a loop that goes on there must have the same."""
    write_atomic(Path(settings.loop.output_dir) / SETTINGS, json.dumps(plain(asdict(settings)), indent=1).encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
        if isinstance(values, dict) and all(isinstance(values.get(section), dict) for section in _SECTIONS):
            return values | {
                section: {_aliases(section).get(name, name): value for name, value in values[section].items()}
                for section in _SECTIONS
            }
    except (OSError, ValueError, RecursionError):
        pass
    raise IntegrityError(f"{path} cannot be read; restore it, or begin another loop with another --output-dir")


def refuse_differences(settings: LoopSettings, before: Mapping[str, Any], folder: Path) -> None:
    """
    Raises:
        UsageError: if the loop in the folder began with other settings, naming each.
    """
    now, differences = plain(asdict(settings)), []
    has_trained, is_finished = _progress(settings.loop)
    for section in _SECTIONS:
        names = sorted(now[section].keys() | before[section].keys())
        for name in names:
            is_used = has_trained if section != "eval" else is_finished
            if name in _MAY_CHANGE[section] or not (is_used or _decides_images(section, name)):
                continue
            old, new = before[section].get(name), now[section].get(name)
            if old != new:
                differences.append(f"{section}.{name} was {_text(old)} and is {_text(new)}")
    if differences:
        raise UsageError(
            f"{folder} holds a loop with other settings: {'; '.join(differences)}; use those, or name another folder with --output-dir"
        )
    store = Path(before["loop"].get("store") or folder / "store")
    if store.resolve() != settings.loop.store_path.resolve() and (store / "journal").is_dir():
        raise UsageError(
            f"{folder} holds a loop whose store is {store}; name it with --store, or move it to the new place"
        )
    rounds = before["loop"].get("rounds")
    if isinstance(rounds, int) and settings.loop.rounds < rounds:
        raise UsageError(
            f"{folder} holds a loop of {rounds} rounds; --rounds can only be raised, got {settings.loop.rounds}"
        )


def _progress(loop: LoopConfig) -> tuple[bool, bool]:
    """Whether the training of the first round has begun, and whether that round is finished. Settings that no result depends
    on yet may still change."""
    first = loop.round_dir(1)
    has_trained = first.is_dir() and any(not path.name.startswith(".") for path in first.iterdir())
    is_finished = Path(f"{first}.json").exists()
    return has_trained or is_finished, is_finished


def _decides_images(section: str, name: str) -> bool:
    """Whether the images of the first round depend on an option."""
    return section == "generate" or (section == "loop" and name in ("model", "seed", "prompts_per_round"))


def settings_of_images(settings: LoopSettings) -> dict[str, dict[str, Any]]:
    """The settings that the images of the first round depend on, by section."""
    return _kept(settings, _decides_images)


def _text(value: Any) -> str:
    return "not set" if value is None else json.dumps(value)


def identity(settings: LoopSettings) -> str:
    """A hash of everything that affects a loop's results, however many rounds it has; 16 hex digits."""
    return content_id(canonical(_kept(settings, lambda *_: True)).encode()).hex[:16]


def _kept(settings: LoopSettings, of: Callable[[str, str], bool]) -> dict[str, dict[str, Any]]:
    values = plain(asdict(settings))
    return {
        section: {
            name: value
            for name, value in values[section].items()
            if name not in _MAY_CHANGE[section] and of(section, name)
        }
        for section in _SECTIONS
    }
