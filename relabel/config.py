"""Settings of `relabel`."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from ..core.errors import UsageError
from ..core.text import refuse_unseen
from .scorers.precision import DTYPES

Rule = Literal["single", "mean-rank", "weighted", "majority", "unanimous"]
Pairs = Literal["all", "best-worst"]


@dataclass(frozen=True, kw_only=True)
class RelabelConfig:
    scorers: tuple[str, ...] = ("pickscore",)
    """Names of entry points, or module:Class."""
    weights: dict[str, str] = field(default_factory=dict)
    """Weights of a scorer by its name; under "" those of all that are not named."""
    rule: Rule = "single"
    tie_band: float = 0.0
    """Margins up to this are ties: in the scorer's unit for single, majority and unanimous, in ranks for mean-rank, in
    logits for weighted."""
    tie_quantile: float = 0.0
    """Share of the pairs, those with the smallest margins, that are ties; for majority and unanimous of each scorer's
    votes."""
    shares: dict[str, float] = field(default_factory=dict)
    """For weighted: how much a scorer counts, by its name; 1 where it is not named."""
    temperature: float | None = None
    """Difference of scores that makes one logit of the soft label; None takes each scorer's own."""
    fit_temperature: str | None = None
    """Labeler, such as human:me, whose choices say how sure a difference of scores is."""
    pairs: Pairs = "all"
    """best-worst labels of each prompt only the pair with the largest margin."""
    labeler: str | None = None
    """None is the scorer's name for a single one, else rule:scorer+scorer."""
    batch_size: int = 64
    max_bad: float = 0.01
    """Share of unreadable images, of scores that are not finite, or of pairs without a judge's answer, above which the
    run ends with exit code 3."""
    device: str | None = None
    dtype: str = "float32"
    """What the models run in; scores are float32 whatever it is."""

    def __post_init__(self) -> None:
        if not self.scorers:
            raise UsageError("name at least one --scorer")
        if len(set(self.scorers)) < len(self.scorers):
            raise UsageError(f"a scorer is named twice: {', '.join(self.scorers)}")
        if self.rule not in get_args(Rule):
            raise UsageError(f"no rule is called {self.rule!r}; there are {', '.join(get_args(Rule))}")
        if self.rule == "single" and len(self.scorers) > 1:
            raise UsageError(
                "the rule single takes one scorer; name one, or give --rule mean-rank, weighted, majority or unanimous"
            )
        if not (math.isfinite(self.tie_band) and self.tie_band >= 0):
            raise UsageError(f"tie-band must be finite and not negative, got {self.tie_band}")
        if not 0 <= self.tie_quantile < 1:
            raise UsageError(f"tie-quantile must be a share from 0 up to 1, got {self.tie_quantile}")
        if self.tie_band and self.tie_quantile:
            raise UsageError("give --tie-band or --tie-quantile, not both")
        if self.temperature is not None:
            if not (math.isfinite(self.temperature) and self.temperature > 0):
                raise UsageError(f"temperature must be finite and above 0, got {self.temperature}")
            if self.fit_temperature is not None:
                raise UsageError("give --temperature or --fit-temperature, not both")
            if len(self.scorers) > 1:
                raise UsageError("--temperature is in the unit of one scorer; --fit-temperature finds it for several")
        if self.shares and self.rule != "weighted":
            raise UsageError("--share is for the rule weighted; give --rule weighted")
        for name, share in self.shares.items():
            if name not in self.scorers:
                raise UsageError(f"--share names {name!r}, which is none of the scorers: {', '.join(self.scorers)}")
            if not (math.isfinite(share) and share > 0):
                raise UsageError(f"the share of {name} must be above 0, got {share}")
        if self.pairs not in get_args(Pairs):
            raise UsageError(f"pairs knows no {self.pairs!r}; there are {', '.join(get_args(Pairs))}")
        if self.dtype not in DTYPES:
            raise UsageError(f"no dtype is called {self.dtype!r}; there are {', '.join(DTYPES)}")
        if not 0 < self.batch_size <= 100_000:
            raise UsageError(f"batch-size must be at least 1, got {self.batch_size}")
        if not 0 <= self.max_bad <= 1:
            raise UsageError(f"max-bad must be a share between 0 and 1, got {self.max_bad}")
        if self.labeler is not None and (not self.labeler.strip() or self.labeler.startswith("human:")):
            raise UsageError(f"labeler must be a name, and human: is for people; got {self.labeler!r}")
        refuse_unseen(self.labeler or "", "labeler")


def parse_shares(values: list[str]) -> dict[str, float]:
    """From `--share SCORER=NUMBER`."""
    found: dict[str, float] = {}
    for value in values:
        name, _, number = value.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if not name or name in found or math.isnan(share):
            raise UsageError(f"--share takes SCORER=NUMBER, each once; got {value!r}")
        found[name] = share
    return found


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
