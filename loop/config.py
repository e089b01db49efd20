"""Settings of the loop, and those of each stage in each round."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..core.device import DEVICES
from ..core.errors import UsageError
from ..core.ids import canonical, content_id
from ..core.validate import positive, unknown
from ..eval.config import EvalConfig
from ..generate.config import GenerateConfig
from ..relabel.config import RelabelConfig
from ..train.config import TrainConfig

Reference = Literal["previous", "base"]
STAGES: dict[str, type] = {
    "generate": GenerateConfig,
    "relabel": RelabelConfig,
    "train": TrainConfig,
    "eval": EvalConfig,
}
_SET_BY_LOOP = {
    "generate": {"model": "model", "seed": "seed"},
    "train": {"model": "model", "seed": "seed", "output_dir": "output_dir", "labelers": None, "reference": "reference"},
    "eval": {"models": "model", "baseline": "model", "output_dir": "output_dir", "name": None, "human": None},
}
"""Section → option that the loop sets itself → the option of [loop] to use instead, if there is one."""
MAX_ROUNDS = 100
_OWN = re.compile(r"round-\d+|result|reports|report-images")
"""Folders of a loop that hold something other than its store."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    model: str = "shapes"
    """Model to start from: shapes or shapes-flow (built in), a folder, or a hub id."""
    output_dir: str = "prefloop-loop"
    """Folder of the rounds, the report and the result."""
    store: str | None = None
    """Folder of the store; store in the loop's folder if not given."""
    rounds: int = 3
    """Rounds of generating, labelling, training and evaluating."""
    prompts_per_round: int | None = None
    """Prompts to generate images for in each round; no prompt comes again before all were used. All of them if not given."""
    min_margin: float = 0.0
    """Train on pairs whose margin is larger than this, in the scorer's unit."""
    pairs_per_prompt: int | None = None
    """Train on at most this many pairs of a prompt in each round, those with the largest margins."""
    replay: float = 0.0
    """Fraction of the earlier rounds' pairs that is trained on again."""
    reference: Reference = "previous"
    """Frozen model that losses compare with: previous, the result of the round before, or base, the model of the first
    round."""
    seed: int = 0
    """Seed of all rounds; each has its own, which follows from this one."""
    patience: int = 2
    """Stop after this many rounds in a row whose interval against the round before contains ½; 0 disables this."""
    device: str | None = field(
        default=None,
        metadata={"help": "cuda, mps or cpu, for all stages; the best available if not given.", "choices": DEVICES},
    )
    guards: bool = field(
        default=True,
        metadata={
            "help": "Stop when the images leave the bounds of their saturation, sharpness, high-frequency energy or diversity, or "
            "when a scorer that made no label falls while one that did rises."
        },
    )

    def __post_init__(self) -> None:
        positive("rounds", self.rounds, MAX_ROUNDS)
        if self.prompts_per_round is not None:
            positive("prompts-per-round", self.prompts_per_round)
        if self.pairs_per_prompt is not None:
            positive("pairs-per-prompt", self.pairs_per_prompt)
        positive("min-margin", self.min_margin, 1e30, allow_zero=True)
        positive("patience", self.patience, MAX_ROUNDS, allow_zero=True)
        positive("seed", self.seed, 2**31 - 1, allow_zero=True)
        if not 0 <= self.replay <= 1:
            raise UsageError(f"replay must be a fraction from 0 to 1, got {self.replay}")
        if self.reference not in get_args(Reference):
            raise unknown("reference", self.reference, get_args(Reference))
        if "\0" in self.output_dir or not self.output_dir:
            raise UsageError(f"output-dir must be the name of a folder, got {self.output_dir!r}")

        if self.store is not None:
            folder, store = Path(self.output_dir).resolve(), Path(self.store).resolve()
            if store == folder or (folder in store.parents and _OWN.fullmatch(store.relative_to(folder).parts[0])):
                raise UsageError(f"the loop writes {self.store} itself; name another folder with --store")

    @property
    def store_path(self) -> Path:
        return Path(self.output_dir) / "store" if self.store is None else Path(self.store)

    def round_dir(self, number: int) -> Path:
        """Folder of the model that a round trains."""
        return Path(self.output_dir) / f"round-{number}"

    def model_before(self, number: int) -> str:
        """What a round generates with and trains on."""
        return self.model if number == 1 else str(self.round_dir(number - 1))

    def round_seed(self, number: int) -> int:
        """Seed of a round's images and training; that of the first round is the loop's own."""
        if number == 1:
            return self.seed
        return content_id(canonical([self.seed, number]).encode()).int >> 97  # 31 bits


@dataclass(frozen=True)
class LoopSettings:
    """All settings of a loop. Those of the stages are checked when this is made, and kept as they were given."""

    loop: LoopConfig
    generate: Mapping[str, Any]
    relabel: Mapping[str, Any]
    train: Mapping[str, Any]
    eval: Mapping[str, Any]

    def __post_init__(self) -> None:
        for section, options in _SET_BY_LOOP.items():
            for option in options.keys() & getattr(self, section).keys():
                instead = options[option]
                cure = f"give {instead} in [loop] instead" if instead else "leave it out"
                raise UsageError(f"the loop itself sets {option} of [{section}]; {cure}")
        if self.train.get("push_to_hub") is not None:
            raise UsageError("the loop does not push every round; push its result with `prefloop card --push-to-hub`")
        with self._naming("generate"):
            images_per_prompt = self.generate_config(1).images_per_prompt
        if images_per_prompt < 2:
            raise UsageError("images_per_prompt of [generate] must be at least 2: a pair needs two images")
        with self._naming("relabel"):
            select = self.relabel_config().select
        if select != "all":
            raise UsageError(
                "select of [relabel] compares a prompt's pairs of all rounds; give pairs_per_prompt in [loop] instead, which "
                "takes those with the largest margins of each round"
            )
        with self._naming("train"):
            self.train_config(1, "labeler")
        with self._naming("eval"):
            self.eval_config(1, self.loop.model)

    @contextmanager
    def _naming(self, section: str) -> Iterator[None]:
        """An error about a setting of the section says so: several sections have a batch_size."""
        try:
            yield
        except UsageError as error:
            if match := re.fullmatch(r"unknown ([\w-]+) (.+?)(; .*)", str(error), re.DOTALL):
                name, value, choices = match.groups()
                if (setting := name.replace("-", "_")) in getattr(self, section):
                    raise UsageError(f"unknown {setting} {value} of [{section}]{choices}") from error
            name, _, problem = str(error).partition(" ")
            setting = name.replace("-", "_")
            if setting not in getattr(self, section) or problem.startswith("of ["):
                raise
            raise UsageError(f"{setting} of [{section}] {problem}") from error

    def generate_config(self, number: int) -> GenerateConfig:
        loop = self.loop
        return GenerateConfig(
            model=loop.model_before(number), seed=loop.round_seed(number), **self._with_device("generate")
        )

    def relabel_config(self) -> RelabelConfig:
        return RelabelConfig(**self._with_device("relabel"))

    def train_config(self, number: int, labeler: str) -> TrainConfig:
        """
        Args:
            labeler: whose choices to train on.
        """
        loop = self.loop
        base = {"reference": loop.model} if loop.reference == "base" and number > 1 else {}
        options = {"where": self.condition(number), **base}
        return TrainConfig(
            model=loop.model_before(number),
            output_dir=str(loop.round_dir(number)),
            labelers=(labeler,),
            seed=loop.round_seed(number),
            **{**self._with_device("train"), **options},
        )

    def eval_config(self, number: int, baseline: str) -> EvalConfig:
        """A round's result against another model."""
        name = "base" if baseline == self.loop.model else Path(baseline).name
        report = Path(self.loop.output_dir) / "reports" / f"round-{number}-against-{name}"
        return EvalConfig(
            models=(str(self.loop.round_dir(number)),),
            baseline=baseline,
            output_dir=str(report),
            **self._with_device("eval"),
        )

    def _with_device(self, section: str) -> dict[str, Any]:
        """The options of a stage, with the loop's device unless the stage has its own."""
        device = {} if self.loop.device is None else {"device": self.loop.device}
        return device | dict(getattr(self, section))

    def condition(self, number: int) -> str:
        """Which pairs a round trains on, in SQL on the view `preferences`."""
        loop = self.loop
        parts = [f"round = {number}"]
        if loop.replay and number > 1:
            # ids are hashes, so the first digits choose a fixed sample
            earlier = (
                "" if loop.replay == 1 else f" and left(pair_id::varchar, 4) < '{round(loop.replay * 0xFFFF):04x}'"
            )
            parts = [f"(round = {number} or (round < {number}{earlier}))"]
        if loop.min_margin:
            parts.append(f"margin > {loop.min_margin!r}")
        if loop.pairs_per_prompt is not None:
            parts.append(f"margin_rank <= {loop.pairs_per_prompt}")
        if self.train.get("where"):
            from ..store.condition import condition  # slow to import

            parts.append(condition(self.train["where"], "where of [train]"))
        return " and ".join(parts)
