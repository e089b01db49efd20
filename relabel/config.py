"""Settings of `relabel`."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..core.errors import UsageError
from ..core.executor import check_workers
from ..core.text import refuse_invisible
from .judges.request_limits import RequestLimits
from .rules import RULES
from .scorers.precision import AUTO, DTYPES
from .selection import SELECTIONS


def _list(names: Iterable[str], conjunction: str = "or") -> str:
    *most, last = names
    return f"{', '.join(most)} {conjunction} {last}" if most else last


def _summaries(records: Iterable[tuple[str, str]]) -> str:
    return "; ".join(f"{name} ({summary})" for name, summary in records)


def _by_tie_unit() -> str:
    units: dict[str, list[str]] = {}
    for name, rule in RULES.items():
        units.setdefault(rule.tie_unit, []).append(name)
    return ", ".join(f"in {unit} for {_list(names, 'and')}" for unit, names in units.items())


_WEIGHTED = [name for name, rule in RULES.items() if rule.takes_weights]
_VOTING = [name for name, rule in RULES.items() if rule.votes]
_RULE_HELP = f"How scores become labels: {_summaries((name, rule.summary) for name, rule in RULES.items())}."
_BAND_HELP = f"Margins up to this are ties: {_by_tie_unit()}."
_QUANTILE_HELP = (
    "Fraction of pairs, those with the smallest margins, that are ties; for "
    f"{_list(_VOTING, 'and')}, of each scorer's votes."
)
_WEIGHT_HELP = f"SCORER=NUMBER: weight of the scorer for --rule {_list(_WEIGHTED)}; 1 if not given."
_SELECT_HELP = f"Which pairs to label: {_summaries((name, how.summary) for name, how in SELECTIONS.items())}."


@dataclass(frozen=True, kw_only=True)
class RelabelConfig(RequestLimits):
    scorers: tuple[str, ...] = ("pickscore",)
    """Scorer's name, vlm:TEMPLATE, module:Class, the URL of one, or human for the labelling page; repeat for several. Defaults to
    pickscore."""
    checkpoints: dict[str, str] = field(default_factory=dict)
    """Scorer's checkpoint: PATH, SCORER=PATH, a hub id, or shapes for the built-in world's; by default the official
    one."""
    rule: str = field(default="single", metadata={"help": _RULE_HELP, "choices": tuple(RULES)})
    scorer_weights: dict[str, float] = field(default_factory=dict, metadata={"help": _WEIGHT_HELP})
    tie_band: float = field(default=0.0, metadata={"help": _BAND_HELP})
    tie_quantile: float = field(default=0.0, metadata={"help": _QUANTILE_HELP})
    select: str = field(default="all", metadata={"help": _SELECT_HELP})
    temperature: float | None = None
    """Difference of scores that makes one logit of the soft label; by default the scorer's own."""
    fit_temperature: str | None = None
    """Labeler, such as human:me, from whose choices to fit the temperature."""
    labeler: str | None = None
    """Name of the labels; by default the scorer's name, or rule:scorer+scorer."""
    batch_size: int = 64
    """Images scored at once."""
    max_unreadable: float = 0.01
    """Maximum fraction of unreadable images, of scores that are not finite, or of pairs without an answer. Above it the
    exit code is 3."""
    device: str | None = None
    """cuda, mps or cpu; the best available if not given."""
    dtype: str = AUTO
    """auto, float32, bfloat16 or float16: what the models run in; auto is float32, and on CUDA bfloat16, or float16 on a GPU
    that has no bfloat16. Scores are float32 either way."""
    workers: int = 1
    """Processes that score, each with the model: one for each GPU, of this machine or of the Ray cluster at RAY_ADDRESS."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_workers(self.workers)
        if not self.scorers:
            raise UsageError("name at least one --scorer")
        if len(set(self.scorers)) < len(self.scorers):
            raise UsageError(f"a scorer is named twice: {', '.join(self.scorers)}")
        if self.rule not in RULES:
            raise UsageError(f"unknown rule {self.rule!r}; choose from {', '.join(RULES)}")
        if RULES[self.rule].one_scorer and len(self.scorers) > 1:
            others = _list(name for name, rule in RULES.items() if not rule.one_scorer)
            raise UsageError(f"the rule {self.rule} takes one scorer; name one, or give --rule {others}")
        if not (math.isfinite(self.tie_band) and self.tie_band >= 0):
            raise UsageError(f"tie-band must be finite and not negative, got {self.tie_band}")
        if not 0 <= self.tie_quantile < 1:
            raise UsageError(f"tie-quantile must be a fraction from 0 up to, not including, 1, got {self.tie_quantile}")
        if self.tie_band and self.tie_quantile:
            raise UsageError("give --tie-band or --tie-quantile, not both")
        if self.temperature is not None:
            if not (math.isfinite(self.temperature) and self.temperature > 0):
                raise UsageError(f"temperature must be finite and above 0, got {self.temperature}")
            if self.fit_temperature is not None:
                raise UsageError("give --temperature or --fit-temperature, not both")
            if len(self.scorers) > 1:
                raise UsageError("--temperature is in the unit of one scorer; use --fit-temperature for several")
        if self.scorer_weights and not RULES[self.rule].takes_weights:
            raise UsageError(f"the rule {self.rule} takes no --scorer-weight; give --rule {_list(_WEIGHTED)}")
        for name, weight in self.scorer_weights.items():
            if name not in self.scorers:
                raise UsageError(
                    f"--scorer-weight names {name!r}, which is not one of the scorers: {', '.join(self.scorers)}"
                )
            if not (math.isfinite(weight) and weight > 0):
                raise UsageError(f"the weight of {name} must be finite and above 0, got {weight}")
        if self.select not in SELECTIONS:
            raise UsageError(f"unknown select {self.select!r}; choose from {', '.join(SELECTIONS)}")
        if self.dtype not in (*DTYPES, AUTO):
            raise UsageError(f"unknown dtype {self.dtype!r}; choose from {', '.join((*DTYPES, AUTO))}")
        if not 0 < self.batch_size <= 100_000:
            raise UsageError(f"batch-size must be between 1 and 100000, got {self.batch_size}")
        if not 0 <= self.max_unreadable <= 1:
            raise UsageError(f"max-unreadable must be between 0 and 1, got {self.max_unreadable}")
        if self.labeler is not None and (not self.labeler.strip() or self.labeler.startswith("human:")):
            raise UsageError(f"labeler must be a name, and human: is for people; got {self.labeler!r}")
        refuse_invisible(self.labeler or "", "labeler")


def parse_scorer_weights(values: list[str]) -> dict[str, float]:
    """From `--scorer-weight SCORER=NUMBER`."""
    weights: dict[str, float] = {}
    for value in values:
        name, _, number = value.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name or name in weights or math.isnan(weight):
            raise UsageError(f"--scorer-weight must be SCORER=NUMBER, each scorer once; got {value!r}")
        weights[name] = weight
    return weights


def parse_checkpoints(values: list[str]) -> dict[str, str]:
    """From `--checkpoint PATH`, which is kept under "", and `--checkpoint SCORER=PATH`."""
    checkpoints: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals:
            name, path = "", value
        if not path or name in checkpoints:
            raise UsageError(f"--checkpoint must be PATH or SCORER=PATH, each scorer once; got {value!r}")
        checkpoints[name] = path
    return checkpoints


def installed_scorers() -> list[str]:
    """For the shell's completion; the registry is imported only then."""
    from .scorers.registry import scorer_names

    return scorer_names()
