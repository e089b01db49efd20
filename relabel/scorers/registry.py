"""What a scorer is, and how to load one by its name."""

import importlib
import inspect
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast

from ...core.errors import PrefloopError, UsageError
from .own_code import describe_error, own_code, prints_to_stderr
from .precision import AUTO, DTYPES

if TYPE_CHECKING:
    from PIL.Image import Image

GROUP = "prefloop.scorers"
_NAME = re.compile(r"(?!human:)[^@]{1,100}")
_objects: ContextVar[Mapping[str, "Scorer"]] = ContextVar("objects", default=MappingProxyType({}))
"""Scorers that exist already, by their names."""


class Scorer(Protocol):
    """Gives an image a number; higher is better, in the scorer's own unit.

    Any class with these attributes is a scorer; it inherits nothing. Its constructor may take `checkpoint` (a folder,
    file, hub id or None for the scorer's own default), `device` (a torch device or None) and `dtype` (what the model runs
    in; part of `revision`, scores stay float32). Each is passed by name if the constructor has it.
    A scorer that is also a `dual_encoder.DualEncoderScorer` is asked for embeddings, which are cached.
    Optional attributes:

    temperature: the difference of scores that makes one logit; 1.0 if absent.
    eval_only: true if it may not make training labels.
    needs_tags: true if it is called `score(prompts, images, tags)`, with a dict of each prompt's tags, or None for one
        without any.
    sources: JSON that names the files it read, kept in the store.
    reads: what it reads if no checkpoint is given: each a `sources.Source`, or owner/name or owner/name/file of the hub.
    weights_license: of what it reads, such as "MIT"; absent if it is not known.
    wants_gpu: true if it is slow without one.
    is_endpoint: true if its checkpoint is a server's address, then # and anything else. If absent, it is one if it reads
        nothing and `checkpoint_needed` names an http address.
    checkpoint_needed: what to do if it cannot do without a checkpoint.
    variant: static method from the text after NAME: to the class of that variant.
    limit_requests: method that takes the stage's `RequestLimits`, if it sends requests.
    requests_used: method that gives what its requests have used: requests, prompt_tokens, completion_tokens, cost.
    files: the paths of its weights, for `--dry-run`.
    memory: method from the batch size to the bytes of weights and activations, for `--dry-run`; by default the size of files.
    columns: names of further numbers for each image. `score_columns(prompts, images)` then gives them after the score,
        float32 (B, 1 + their number), and the store keeps them as scores of NAME-COLUMN@REVISION.
    n_truncated: method from prompts to how many of them are longer than the scorer reads.
    check_weights: static method from `checkpoint` to a line for `prefloop scorers check`; IntegrityError if they are wrong.
    """

    name: str
    revision: str
    """Changes when the same image could get another score: weights, preprocessing, dtype."""
    needs_prompt: bool

    def score(self, prompts: Sequence[str], images: "Sequence[Image]") -> Any:
        """float32 (B,), one score for each prompt and image; anything numpy can read."""
        ...


def scorer_names() -> list[str]:
    return sorted(_points(tuple(sys.path)))


@cache
def _points(_path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """Of the packages on the path, by name; kept, since reading all of them takes longer than loading a small scorer."""
    return {point.name: point for point in entry_points(group=GROUP)}


def scorer_class(name: str) -> type:
    """The class of an entry point's name, of NAME:VARIANT such as vlm:pair, of `module:Class`, or of the scorer behind a URL.

    Raises:
        UsageError: if there is none, or it is not a scorer.
    """
    if name.lower().startswith(("http://", "https://")):
        from ..remote.scorer import scorer_at

        return scorer_at(name)
    points = _points(tuple(sys.path))
    if name in points:
        cls = _import(f"the scorer {name!r} of {points[name].value}", points[name].load)
    elif ":" in name:
        module, _, attribute = name.partition(":")
        variant = getattr(scorer_class(module), "variant", None) if module in points else None
        cls = (
            variant(attribute)
            if variant
            else _import(f"the scorer {name!r}", lambda: getattr(_module(module), attribute))
        )
    else:
        raise UsageError(
            f"unknown scorer {name!r}; choose from {', '.join(scorer_names())}, or give module:Class or a URL"
        )
    if not isinstance(cls, type) or not callable(getattr(cls, "score", None)):
        what = "a class without a method score" if isinstance(cls, type) else f"a {type(cls).__name__}"
        raise UsageError(
            f"{name!r} is not a scorer but {what}; name a class with name, revision, needs_prompt and score"
        )
    return cls


def is_eval_only(scorer: Scorer | type) -> bool:
    return bool(getattr(scorer, "eval_only", False) or getattr(scorer, "judge_only", False))  # judge_only: as in 0.1


@prints_to_stderr()
def _import(what: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (Exception, SystemExit) as error:  # a module can raise anything while it is imported
        raise UsageError(f"{what} cannot be imported: {describe_error(error)}") from error


def _module(name: str) -> Any:
    """Import it by name, from the current folder too: naming module:Class is consent to run it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0] or os.getcwd() in sys.path:
            raise
    sys.path.append(os.getcwd())  # last: it must not replace anything installed
    importlib.invalidate_caches()
    return importlib.import_module(name)


def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(cls).parameters
    except ValueError:  # a class written in C
        return {}


def _checkpoint_name(cls: type) -> str | None:
    """The constructor's parameter for the checkpoint."""
    parameters = _parameters(cls)
    return next((name for name in ("checkpoint", "weights") if name in parameters), None)  # weights: as in 0.1


def _refuse_others(scorer: Any, name: str) -> None:
    """
    Raises:
        UsageError: if it lacks what a scorer has.
    """
    missing = [
        attribute for attribute in ("name", "revision", "needs_prompt", "score") if not hasattr(scorer, attribute)
    ]
    if missing:
        raise UsageError(f"{name!r} is not a scorer: it has no {', '.join(missing)}")
    if not isinstance(scorer.name, str) or not _NAME.fullmatch(scorer.name) or not scorer.name.isprintable():
        raise UsageError(
            f"a scorer's name must be a printable text without @, at most 100 characters, not human:…; got {scorer.name!r}"
        )
    revision = scorer.revision
    if revision is None or not str(revision).strip() or not str(revision).isprintable():
        raise UsageError(f"the revision of {scorer.name} must be a printable text, got {revision!r}")
    columns = getattr(scorer, "columns", ())
    if isinstance(columns, str) or len({*columns}) < len(columns) or not all(map(_is_column, columns)):
        raise UsageError(
            f"the columns of {scorer.name} must be different names, each a printable text without @; got {columns!r}"
        )
    temperature = getattr(scorer, "temperature", 1.0)
    if not (isinstance(temperature, (int, float)) and 0 < temperature < math.inf):
        raise UsageError(f"the temperature of {scorer.name} must be a finite number above 0, got {temperature!r}")


def _is_column(name: Any) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and name.isprintable()


@contextmanager
def scorer_objects(scorers: Sequence[Scorer]) -> Iterator[None]:
    """Objects to use as scorers during the block; `load_scorer` finds each by its name, before any that is installed.

    Raises:
        UsageError: if one is not a scorer, or two have the same name.
    """
    for scorer in scorers:
        if isinstance(scorer, type):
            raise UsageError(f"{scorer.__name__} is a class; give an object of it, {scorer.__name__}()")
        with own_code(scorer):
            _refuse_others(scorer, type(scorer).__name__)
    twice = [name for name, count in Counter(scorer.name for scorer in scorers).items() if count > 1]
    if twice:
        raise UsageError(f"two scorers are named {twice[0]}; give one another name")
    before = _objects.set({scorer.name: scorer for scorer in scorers})
    try:
        yield
    finally:
        _objects.reset(before)


def is_object(name: str) -> bool:
    """Whether a name is that of an object of `scorer_objects`, which exists in this process alone."""
    return name in _objects.get()


@prints_to_stderr()
def load_scorer(name: str, checkpoint: str | None = None, device: str | None = None, dtype: str = AUTO) -> Scorer:
    """A scorer, ready to score. Built-in ones load their weights at the first image, not here.

    Args:
        dtype: one of DTYPES, or auto for the scorer's own default.
    """
    if (existing := _objects.get().get(name)) is not None:
        if checkpoint is not None or dtype not in (AUTO, "float32"):
            raise UsageError(f"{name} is an object with weights of its own; leave checkpoints and dtype out")
        return existing
    cls = scorer_class(name)
    parameters = _parameters(cls)
    checkpoint_name = _checkpoint_name(cls)
    if checkpoint is not None and checkpoint_name is None:
        raise UsageError(f"the scorer {name!r} takes no checkpoint; leave --checkpoint out")
    if dtype not in (AUTO, "float32") and "dtype" not in parameters:
        raise UsageError(f"the scorer {name!r} takes no dtype; leave --dtype out")
    arguments = {checkpoint_name: checkpoint, "device": device, "dtype": dtype}
    if dtype == AUTO and "dtype" in parameters:
        default = parameters["dtype"].default
        arguments["dtype"] = "float32" if default is inspect.Parameter.empty else default
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [
        parameter.name
        for parameter in parameters.values()
        if parameter.name not in arguments and parameter.default is parameter.empty and parameter.kind not in variadic
    ]
    if required:
        raise UsageError(
            f"the scorer {name!r} cannot be created: its constructor requires {', '.join(required)}, but only checkpoint, "
            "device and dtype are passed; give the others a default"
        )
    try:
        scorer = cls(**{key: value for key, value in arguments.items() if key in parameters})
        _refuse_others(scorer, name)
    except PrefloopError:
        raise
    except (Exception, SystemExit) as error:  # anybody's code can raise anything
        raise PrefloopError(f"the scorer {name!r} cannot be created: {describe_error(error, cls)}") from error
    return cast("Scorer", scorer)


def dtype_of(scorer: Scorer, requested: str = AUTO) -> str:
    """The dtype to load the same scorer with on another machine, where auto may mean another one."""
    dtype = getattr(scorer, "dtype", None)
    found = requested == AUTO and dtype in DTYPES and "dtype" in _parameters(type(scorer))
    return str(dtype) if found else requested


def load_scorers(
    names: Sequence[str], checkpoints: Mapping[str, str], device: str | None = None, dtype: str = AUTO
) -> list[Scorer]:
    """Several scorers. The checkpoint under "" is for all that take one and are not named; one under NAME is for NAME:VARIANT
    too."""
    for name in checkpoints.keys() - {"", *names, *(name.partition(":")[0] for name in names)}:
        raise UsageError(f"--checkpoint names {name!r}, which is not one of the scorers: {', '.join(names)}")
    scorers = []
    for name in names:
        takes_one = name not in _objects.get() and _checkpoint_name(scorer_class(name))
        default = checkpoints.get(name.partition(":")[0], checkpoints.get("")) if takes_one else None
        scorers.append(load_scorer(name, checkpoints.get(name, default), device, dtype))
    twice = [key for key, count in Counter(map(identity, scorers)).items() if count > 1]
    if twice:
        raise UsageError(f"two of {', '.join(names)} are the same scorer, {twice[0]}; name it once")
    same = [name for name, count in Counter(scorer.name for scorer in scorers).items() if count > 1]
    if same:  # results are given by name
        raise UsageError(f"two of {', '.join(names)} are named {same[0]}; name one of them at a time")
    return scorers


def identity(scorer: Scorer) -> str:
    """name@revision, the key of its scores."""
    with own_code(scorer):
        return f"{scorer.name}@{scorer.revision}"


def refuse_changed(scorer: Scorer, before: str) -> None:
    """
    Args:
        before: the scorer's name@revision before its first batch.

    Raises:
        PrefloopError: if it has another one now, by which its scores would not be found.
    """
    if (now := identity(scorer)) != before:
        raise PrefloopError(
            f"the scorer {before} is {now} after its first batch; its revision must be known before it scores, and stay the same"
        )
