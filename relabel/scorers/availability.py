"""Which scorers can run on this machine. `scorers ls`, `scorers check`, `doctor` and the default judges of `eval` ask here."""

import http.client
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...core.errors import PrefloopError
from . import checkpoints
from .registry import is_eval_only, scorer_class, scorer_names
from .sources import Source, as_source

Weights = Literal["built-in", "cached", "given", "endpoint", "missing", "unknown", "broken"]
TIMEOUT = 2.0  # seconds for a server to answer


@dataclass(frozen=True, kw_only=True)
class Availability:
    """`dataclasses.asdict` turns it into JSON."""

    name: str
    runs: bool
    """Whether it can score here, as far as that can be told without loading it."""
    weights: Weights
    """built-in: shipped with prefloop, or needs none; cached: all of the official ones are here; given: a checkpoint of
    the user's; endpoint: on a server; unknown: the scorer does not say what it reads; broken: it cannot be imported."""
    missing: tuple[str, ...] = ()
    """What it lacks."""
    n_bytes: int | None = None
    """Size of everything it reads by default; None if that is not known."""
    n_missing_bytes: int | None = None
    """Size of what `scorers fetch` would still download."""
    license: str | None = None
    """Of the weights; None if it is not known."""
    needs_prompt: bool = True
    wants_gpu: bool | None = None
    """True if it is slow without a GPU; None if it does not say."""
    eval_only: bool = False
    has_built_in: bool = False
    """Whether the built-in world has weights for it: --checkpoint NAME=shapes."""
    can_fetch: bool = False
    """Whether `scorers fetch` downloads what is missing."""
    is_endpoint: bool = False
    reachable: bool | None = None
    """Whether the server that a checkpoint names answers; None if none is named."""
    cure: str | None = None
    """What to do if it does not run."""
    source: str = ""
    """module:Class."""

    @property
    def lacks(self) -> str:
        """Why it does not run, in words."""
        if self.weights == "broken":
            return "cannot be imported"
        return f"lacks {', '.join(self.missing)}"


def installed(checkpoints_of: dict[str, str] | None = None, cache: Path | None = None) -> list[Availability]:
    """All installed scorers, by name.

    Args:
        checkpoints_of: scorer → checkpoint; that under "" is for all that take weights.
        cache: of the hub; the one that its client uses if not given.
    """
    given = checkpoints_of or {}
    return [availability(name, given.get(name, given.get("")), cache) for name in scorer_names()]


def availability(name: str, checkpoint: str | None = None, cache: Path | None = None) -> Availability:
    """Whether one scorer can run here. No model is loaded and nothing is downloaded.

    Args:
        checkpoint: as given on the command line; None for the scorer's own default.
    """
    try:
        kind = scorer_class(name)
        reads = getattr(kind, "reads", None)
        needed: str | None = getattr(kind, "checkpoint_needed", None)
        sources = [as_source(item) for item in reads or ()]
    except PrefloopError as error:
        return Availability(name=name, runs=False, weights="broken", cure=str(error))
    facts: dict[str, Any] = {
        "name": name,
        "license": getattr(kind, "weights_license", None),
        "needs_prompt": bool(getattr(kind, "needs_prompt", True)),
        "wants_gpu": getattr(kind, "wants_gpu", None),
        "eval_only": is_eval_only(kind),
        "has_built_in": checkpoints.built_in(getattr(kind, "name", name)).is_dir(),
        "is_endpoint": bool(getattr(kind, "is_endpoint", reads == () and "http" in str(needed))),
        "source": f"{kind.__module__}:{kind.__qualname__}",
    }
    missing = [source for source in sources if source.local(cache) is None]
    facts |= {"n_bytes": _sum(sources) if sources else None, "n_missing_bytes": _sum(missing) if sources else None}
    if facts["is_endpoint"]:
        is_address = checkpoint is not None and checkpoint.startswith(("http://", "https://"))
        return _of_endpoint(facts, checkpoint if is_address else None, kind)
    if checkpoint and reads != ():
        return _of_checkpoint(facts, getattr(kind, "name", name), checkpoint, cache)
    if reads is None and needed is None:
        return Availability(**facts, runs=True, weights="unknown")
    if not missing and needed is None:
        return Availability(**facts, runs=True, weights="cached" if sources else "built-in")
    cures = [f"`prefloop scorers fetch {name}`"] * bool(missing) + [needed] * (needed is not None)
    if facts["has_built_in"]:
        cures.append(f"for the built-in world give --checkpoint {name}=shapes")
    lacking = (*(source.name for source in missing), *["a checkpoint"] * (needed is not None))
    cure = "; ".join(map(str, cures))
    return Availability(**facts, runs=False, weights="missing", missing=lacking, can_fetch=bool(missing), cure=cure)


def _sum(sources: list[Source]) -> int | None:
    sizes = [source.n_bytes for source in sources]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _of_endpoint(facts: dict[str, Any], checkpoint: str | None, kind: type) -> Availability:
    if checkpoint is None:
        cure = getattr(kind, "checkpoint_needed", f"give --checkpoint {facts['name']}=http://…")
        return Availability(**facts, runs=False, weights="endpoint", missing=("a checkpoint",), cure=cure)
    address = checkpoint.partition("#")[0]
    if answers(address):
        return Availability(**facts, runs=True, weights="endpoint", reachable=True)
    cure = f"start the server, or give another address: {address} does not answer"
    return Availability(**facts, runs=False, weights="endpoint", missing=("an answer",), reachable=False, cure=cure)


def _of_checkpoint(facts: dict[str, Any], scorer: str, checkpoint: str, cache: Path | None) -> Availability:
    if checkpoint == "shapes":
        if facts["has_built_in"]:
            return Availability(**facts, runs=True, weights="built-in")
        cure = "give another --checkpoint: the built-in world has no weights for it"
        return Availability(**facts, runs=False, weights="missing", missing=("built-in weights",), cure=cure)
    kind = checkpoints.kind_of(checkpoint)
    if kind == "local":
        return Availability(**facts, runs=True, weights="given")
    if kind == "hub" and checkpoints.cached(checkpoint, cache) is not None:
        return Availability(**facts, runs=True, weights="cached")
    cure = checkpoints.hub_command(checkpoint) if kind == "hub" else checkpoints.nothing_at(checkpoint, scorer)
    return Availability(**facts, runs=False, weights="missing", missing=(checkpoint,), cure=cure)


def answers(address: str) -> bool:
    """Whether a server answers at an http address, whatever it answers."""
    if not address.startswith(("http://", "https://")):
        return False
    try:
        urllib.request.urlopen(address, timeout=TIMEOUT).close()
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True
