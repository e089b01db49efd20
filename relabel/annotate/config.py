"""Settings of `label` and `browse`."""

import math
import re
from dataclasses import dataclass

from ...core.errors import UsageError
from ...core.text import refuse_invisible

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")
"""Hosts that mean every address of this machine."""
MAX_QUESTION = 200
_NAME = re.compile(r"\w[\w.@-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets others on the network connect, unencrypted."""
    port: int = 0
    """Port to listen on; 0 picks a free one."""
    allow_hosts: tuple[str, ...] = ()
    """Another name by which browsers reach the server, such as a proxy's; repeat for several."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise UsageError(f"port must be from 0 to 65535, got {self.port}")
        for host in (self.host, *self.allow_hosts):
            if not re.fullmatch(r"[A-Za-z0-9.:-]+", host):
                raise UsageError(f"host must be a name or an address without a port, got {host!r}")

    @property
    def is_exposed(self) -> bool:
        """Whether other machines can connect."""
        return self.host not in LOOPBACK


@dataclass(frozen=True, kw_only=True)
class LabelConfig(ServeConfig):
    port: int = 8420
    """Port to listen on; 0 picks a free one."""
    queue: str = "random"
    """Which pairs, in order: random, disagreements (of scorers), close (smallest score differences), eval, eval:NAME (of one
    evaluation), or a query that selects pair_id."""
    question: str = "Which image is better for this prompt?"
    """What people are asked on every screen; stored with the run."""
    labelers: tuple[str, ...] = ()
    """Who labels, each with a link; repeat for several. If not given, the page asks for a name."""
    limit: int | None = None
    """Use only the first N pairs of the queue."""
    overlap: int = 1
    """How many people label each pair."""
    repeats: float = 0.0
    """Fraction of pairs shown again to the same person, to measure self-agreement."""
    seed: int = 0
    """Seed of the random order, of the sides and of the repeats."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.queue.strip():
            raise UsageError("queue is empty; give a query with a column pair_id, or leave it out")
        refuse_invisible(self.question, "question")
        if not 0 < len(self.question.strip()) <= MAX_QUESTION:
            raise UsageError(f"question must have 1 to {MAX_QUESTION} characters, got {len(self.question)}")
        names = [labeler_name(name) for name in self.labelers]
        if len(set(names)) < len(names):
            raise UsageError(f"a labeler is named twice: {', '.join(names)}")
        if not 1 <= self.overlap <= 1000:
            raise UsageError(f"overlap must be from 1 to 1000, got {self.overlap}")
        if not (math.isfinite(self.repeats) and 0 <= self.repeats <= 0.5):
            raise UsageError(f"repeats must be a fraction from 0 to 0.5, got {self.repeats}")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"limit must be at least 1, got {self.limit}")


@dataclass(frozen=True, kw_only=True)
class BrowseConfig(ServeConfig):
    port: int = 8421
    """Port to listen on; 0 picks a free one."""


def labeler_name(typed: str) -> str:
    """human:NAME from what somebody typed, with the prefix or without.

    Raises:
        UsageError: if it is not a valid name.
    """
    name = typed.strip().removeprefix("human:")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"a name can have up to 64 letters, digits, dots, hyphens, underscores and @, no spaces; got {typed[:80]!r}"
        )
    return f"human:{name}"
