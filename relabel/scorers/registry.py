"""What a scorer is, and how one is found by its name."""

import importlib
import inspect
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, cast

from ...core.errors import PrefloopError, UsageError
from .own_code import described

if TYPE_CHECKING:
    from PIL.Image import Image

GROUP = "prefloop.scorers"


class Scorer(Protocol):
    """Gives one picture a number; higher is better, in the scorer's own unit.

    A class is one by its shape: nothing is inherited. Its constructor may take `weights` (a folder, file, hub id or
    None for the scorer's own default) and `device` (a torch device or None); both are passed by name where it has them.
    It may take `dtype` too: what the model runs in, which `revision` then tells; scores stay float32.
    A class that is also `towers.Towers` is asked for embeddings, which are kept.
    Optional attributes: `temperature`, the difference of scores that makes one logit (1.0 where absent); `judge_only`,
    true for one that may not make training labels; `sources`, JSON that says which files it read; `files`, the paths of
    its weights, for `--dry-run`; `n_truncated`, a method that counts the prompts of a list that are longer than it
    reads; `check_weights`, a static method from `weights` to a sentence for `prefloop scorers check`, IntegrityError where they are wrong.
    """

    name: str
    revision: str
    """Changes when the same picture could get another score: weights, preprocessing, dtype."""
    needs_prompt: bool

    def score(self, prompts: Sequence[str], images: "Sequence[Image]") -> Any:
        """float32 (B,), one score for each prompt and picture; anything numpy can read."""
        ...


def scorer_names() -> list[str]:
    return sorted({point.name for point in entry_points(group=GROUP)})


def scorer_class(name: str) -> type:
    """The class behind an entry point's name or `module:Class`.

    Raises:
        UsageError: where there is none, or it is no scorer.
    """
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name in points:
        found = _imported(f"the scorer {name!r} of {points[name].value}", points[name].load)
    elif ":" in name:
        module, _, attribute = name.partition(":")
        found = _imported(f"the scorer {name!r}", lambda: getattr(_module(module), attribute))
    else:
        raise UsageError(f"no scorer is called {name!r}; there are {', '.join(scorer_names())}, or say module:Class")
    if not isinstance(found, type) or not callable(getattr(found, "score", None)):
        what = "a class without a method score" if isinstance(found, type) else f"a {type(found).__name__}"
        raise UsageError(
            f"{name!r} is not a scorer but {what}; name a class with name, revision, needs_prompt and score"
        )
    return found


def _imported(what: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (Exception, SystemExit) as error:  # a module can raise anything while it is imported
        raise UsageError(f"{what} cannot be imported: {described(error)}") from error


def _module(name: str) -> Any:
    """By its name, from the current folder too: whoever names module:Class says that it may run."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0] or os.getcwd() in sys.path:
            raise
    sys.path.append(os.getcwd())  # last: nothing that is installed is replaced
    importlib.invalidate_caches()
    return importlib.import_module(name)


def _parameters(kind: type) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(kind).parameters
    except ValueError:  # of a class written in C
        return {}


def load_scorer(name: str, weights: str | None = None, device: str | None = None, dtype: str = "float32") -> Scorer:
    """A scorer, ready to score. Built-in ones read their weights at the first picture, not here."""
    kind = scorer_class(name)
    accepted = _parameters(kind)
    given = {"weights": weights, "device": device, "dtype": dtype}
    if weights is not None and "weights" not in accepted:
        raise UsageError(f"the scorer {name!r} takes no weights")
    if dtype != "float32" and "dtype" not in accepted:
        raise UsageError(f"the scorer {name!r} takes no dtype; leave --dtype out")
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    lacking = [
        one.name
        for one in accepted.values()
        if one.name not in given and one.default is one.empty and one.kind not in variadic
    ]
    if lacking:
        raise UsageError(
            f"the scorer {name!r} cannot be made: its constructor needs {', '.join(lacking)}; a scorer is given "
            "weights, device and dtype alone, so give the others a default"
        )
    try:
        scorer = kind(**{key: value for key, value in given.items() if key in accepted})
    except PrefloopError:
        raise
    except (Exception, SystemExit) as error:  # anybody's code can raise anything
        raise PrefloopError(f"the scorer {name!r} cannot be made: {described(error, kind)}") from error
    missing = [
        attribute for attribute in ("name", "revision", "needs_prompt", "score") if not hasattr(scorer, attribute)
    ]
    if missing:
        raise UsageError(f"{name!r} is not a scorer: it lacks {', '.join(missing)}")
    if not isinstance(scorer.name, str) or "@" in scorer.name or not scorer.name or not scorer.name.isprintable():
        raise UsageError(f"a scorer's name must be a printable text without @, got {scorer.name!r}")
    temperature = getattr(scorer, "temperature", 1.0)
    if not (isinstance(temperature, (int, float)) and 0 < temperature < math.inf):
        raise UsageError(f"the temperature of {scorer.name} must be a finite number above 0, got {temperature!r}")
    return cast("Scorer", scorer)


def load_scorers(
    names: Sequence[str], weights: Mapping[str, str], device: str | None = None, dtype: str = "float32"
) -> list[Scorer]:
    """Several scorers. Weights under "" are for all that take some and are not named."""
    for named in weights.keys() - {"", *names}:
        raise UsageError(f"--checkpoint names {named!r}, which is none of the scorers asked for: {', '.join(names)}")
    loaded = []
    for name in names:
        for_all = weights.get("") if "weights" in _parameters(scorer_class(name)) else None
        loaded.append(load_scorer(name, weights.get(name, for_all), device, dtype))
    twice = [key for key, count in Counter(map(identity, loaded)).items() if count > 1]
    if twice:
        raise UsageError(f"two of {', '.join(names)} are the same scorer, {twice[0]}; name it once")
    return loaded


def identity(scorer: Scorer) -> str:
    """name@revision, the key of its scores."""
    return f"{scorer.name}@{scorer.revision}"
