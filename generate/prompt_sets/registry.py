"""Prompt sets by name: those that prefloop knows, and those of other packages."""

from importlib.metadata import EntryPoint, entry_points

from ...core.errors import UsageError
from .known import KNOWN
from .record import NAME, PromptSet

GROUP = "prefloop.prompt_sets"
_KNOWN = {known.name: known for known in KNOWN}


def set_names() -> list[str]:
    return [*_KNOWN, *sorted(_points())]


def is_set(name: str) -> bool:
    return name in _KNOWN or name in _points()


def prompt_set(name: str) -> PromptSet:
    """The set of a name. What prefloop knows cannot be replaced by another package.

    Raises:
        UsageError: if there is none, or a package's entry point does not give one.
    """
    if name in _KNOWN:
        return _KNOWN[name]
    point = _points().get(name)
    if point is None:
        raise UsageError(f"unknown prompt set {name!r}; choose from {', '.join(set_names())}")
    try:
        loaded = point.load()
    except (Exception, SystemExit) as error:  # a module can raise anything while it is imported
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"the prompt set {name!r} of {point.value} cannot be imported: {line}") from error
    if not isinstance(loaded, PromptSet) or loaded.name != name:
        raise UsageError(f"{point.value} is not a PromptSet with the name {name!r}, which its entry point has")
    return loaded


def _points() -> dict[str, EntryPoint]:
    points = entry_points(group=GROUP)
    return {point.name: point for point in points if point.name not in _KNOWN and NAME.fullmatch(point.name)}
