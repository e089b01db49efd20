"""Settings of `pair`."""

from dataclasses import dataclass, field

from ..core.errors import UsageError
from ..core.validate import positive, unknown
from .pairing import STRATEGIES

_SCORED = [name for name, strategy in STRATEGIES.items() if strategy.needs_scores]
_STRATEGY_HELP = f"Which pairs: {'; '.join(f'{name} ({strategy.summary})' for name, strategy in STRATEGIES.items())}."
_SCORER_HELP = f"Scorer whose stored scores {' and '.join(_SCORED)} compare: its name, or name@revision."


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    pairing: str = field(default="all", metadata={"help": _STRATEGY_HELP, "choices": tuple(STRATEGIES)})
    scorer: str | None = field(default=None, metadata={"help": _SCORER_HELP})
    where: str | None = None
    """SQL condition over the images, such as "model = 'tuned' and width >= 512"; docs/pairing.md lists the columns."""
    models: tuple[str, ...] = ()
    """Pair only images of this model; repeat for several."""
    pairs_per_prompt: int | None = None
    """At most N pairs of each prompt: the first ones of best-worst, close and random, else a random sample."""
    include_eval: bool = False
    """Also pair the images of prompts that an evaluation used. Training on them makes later evaluations on the same
    prompts worthless."""
    seed: int = 0
    """Seed of random, and of the sample that --pairs-per-prompt keeps."""

    def __post_init__(self) -> None:
        if self.pairing not in STRATEGIES:
            raise unknown("pairing", self.pairing, STRATEGIES)
        needs_scores = STRATEGIES[self.pairing].needs_scores
        if needs_scores and self.scorer is None:
            raise UsageError(f"--pairing {self.pairing} compares scores; name the scorer with --scorer")
        if not needs_scores and self.scorer is not None:
            raise UsageError(
                f"--pairing {self.pairing} compares no scores; leave out --scorer, or give --pairing "
                f"{' or '.join(_SCORED)}"
            )
        if self.where is not None and not self.where.strip():
            raise UsageError("where must be an SQL condition, got an empty text")
        if len(set(self.models)) < len(self.models):
            raise UsageError(f"a model is named twice: {', '.join(self.models)}")
        if self.pairing == "across-models" and len(self.models) == 1:
            raise UsageError("--pairing across-models needs two models; name another --model, or none for all of them")
        if self.pairs_per_prompt is not None:
            positive("pairs-per-prompt", self.pairs_per_prompt)
        positive("seed", self.seed, 2**63 - 1, allow_zero=True)
