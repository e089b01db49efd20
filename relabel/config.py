"""Settings of `relabel`."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from ..core.errors import UsageError
from ..core.text import refuse_invisible
from .scorers.precision import DTYPES

Rule = Literal["single", "mean-rank", "weighted", "majority", "unanimous"]
Select = Literal["all", "best-worst"]


@dataclass(frozen=True, kw_only=True)
class RelabelConfig:
    scorers: tuple[str, ...] = ("pickscore",)
    """Scorer's name, module:Class, or human for the labelling page; repeat for several. Defaults to pickscore."""
    checkpoints: dict[str, str] = field(default_factory=dict)
    """Scorer's weights: PATH, SCORER=PATH, a hub id, or shapes for the built-in world's; by default the official ones."""
    rule: Rule = "single"
    """How scores become labels: single, mean-rank, weighted, majority or unanimous."""
    scorer_weights: dict[str, float] = field(default_factory=dict)
    """SCORER=NUMBER: the scorer's weight in the rule weighted; 1 if not given."""
    tie_band: float = 0.0
    """Margins up to this are ties: in the scorer's unit for single, majority and unanimous, in ranks for mean-rank, in
    logits for weighted."""
    tie_quantile: float = 0.0
    """Fraction of pairs, those with the smallest margins, that are ties; for majority and unanimous, of each scorer's
    votes."""
    select: Select = "all"
    """Which pairs to label: all, or best-worst for only the pair with the largest margin of each prompt."""
    temperature: float | None = None
    """Difference of scores that makes one logit of the soft label; by default the scorer's own."""
    fit_temperature: str | None = None
    """Labeler, such as human:me, from whose choices to fit the temperature."""
    labeler: str | None = None
    """Name of the labels; by default the scorer's name, or rule:scorer+scorer."""
    batch_size: int = 64
    """Images scored at once."""
    max_unreadable: float = 0.01
    """Maximum fraction of unreadable images, of scores that are not finite, or of pairs without an answer. Above it the exit
    code is 3."""
    device: str | None = None
    """cuda, mps or cpu; the best available if not given."""
    dtype: str = "float32"
    """float32, bfloat16 or float16: what the models run in. Scores are float32 either way."""

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
        if self.scorer_weights and self.rule != "weighted":
            raise UsageError("--scorer-weight is for the rule weighted; give --rule weighted")
        for name, weight in self.scorer_weights.items():
            if name not in self.scorers:
                raise UsageError(
                    f"--scorer-weight names {name!r}, which is not one of the scorers: {', '.join(self.scorers)}"
                )
            if not (math.isfinite(weight) and weight > 0):
                raise UsageError(f"the weight of {name} must be above 0, got {weight}")
        if self.select not in get_args(Select):
            raise UsageError(f"unknown select {self.select!r}; choose from {', '.join(get_args(Select))}")
        if self.dtype not in DTYPES:
            raise UsageError(f"no dtype is called {self.dtype!r}; there are {', '.join(DTYPES)}")
        if not 0 < self.batch_size <= 100_000:
            raise UsageError(f"batch-size must be at least 1, got {self.batch_size}")
        if not 0 <= self.max_unreadable <= 1:
            raise UsageError(f"max-unreadable must be between 0 and 1, got {self.max_unreadable}")
        if self.labeler is not None and (not self.labeler.strip() or self.labeler.startswith("human:")):
            raise UsageError(f"labeler must be a name, and human: is for people; got {self.labeler!r}")
        refuse_invisible(self.labeler or "", "labeler")


def parse_scorer_weights(values: list[str]) -> dict[str, float]:
    """From `--scorer-weight SCORER=NUMBER`."""
    found: dict[str, float] = {}
    for value in values:
        name, _, number = value.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name or name in found or math.isnan(weight):
            raise UsageError(f"--scorer-weight takes SCORER=NUMBER, each scorer once; got {value!r}")
        found[name] = weight
    return found


def parse_checkpoints(values: list[str]) -> dict[str, str]:
    """From `--checkpoint PATH` and `--checkpoint SCORER=PATH`."""
    found: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals:
            name, path = "", value
        if not path or name in found:
            raise UsageError(f"--checkpoint takes PATH or SCORER=PATH, each scorer once; got {value!r}")
        found[name] = path
    return found
