"""Settings of `relabel`."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from ..store.errors import UsageError

Rule = Literal["single", "mean-rank", "majority", "unanimous"]


@dataclass(frozen=True, kw_only=True)
class RelabelConfig:
    scorers: tuple[str, ...] = ("pickscore",)
    """Names of entry points, or module:Class."""
    weights: dict[str, str] = field(default_factory=dict)
    """Weights of a scorer by its name; under "" those of all that are not named."""
    rule: Rule = "single"
    tie_band: float = 0.0
    """Margins up to this are ties: in the scorer's unit for single, majority and unanimous, in ranks for mean-rank."""
    labeler: str | None = None
    """None is the scorer's name for a single one, else rule:scorer+scorer."""
    batch_size: int = 64
    max_bad: float = 0.01
    """Share of unreadable images above which the run ends with exit code 3."""
    device: str | None = None

    def __post_init__(self) -> None:
        if not self.scorers:
            raise UsageError("name at least one --scorer")
        if len(set(self.scorers)) < len(self.scorers):
            raise UsageError(f"a scorer is named twice: {', '.join(self.scorers)}")
        if self.rule not in get_args(Rule):
            raise UsageError(f"no rule is called {self.rule!r}; there are {', '.join(get_args(Rule))}")
        if self.rule == "single" and len(self.scorers) > 1:
            raise UsageError(
                "the rule single takes one scorer; name one, or give --rule mean-rank, majority or unanimous"
            )
        if not (math.isfinite(self.tie_band) and self.tie_band >= 0):
            raise UsageError(f"tie-band must be finite and not negative, got {self.tie_band}")
        if not 0 < self.batch_size <= 100_000:
            raise UsageError(f"batch-size must be at least 1, got {self.batch_size}")
        if not 0 <= self.max_bad <= 1:
            raise UsageError(f"max-bad must be a share between 0 and 1, got {self.max_bad}")
        if self.labeler is not None and (not self.labeler.strip() or self.labeler.startswith("human:")):
            raise UsageError(f"labeler must be a name, and human: is for people; got {self.labeler!r}")


def parse_weights(values: list[str]) -> dict[str, str]:
    """From `--weights PATH` and `--weights NAME=PATH`."""
    found: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals:
            name, path = "", value
        if not path or name in found:
            raise UsageError(f"--weights takes PATH or SCORER=PATH, each once; got {value!r}")
        found[name] = path
    return found
