"""The whole loop on the built-in world, through the functions behind the commands."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.validate import unknown
from ..models.lineage import read_result
from ..models.resolve import BUILT_IN
from ..store import PairStore, UsageError

if TYPE_CHECKING:
    from ..eval.config import EvalConfig
    from ..generate.config import GenerateConfig
    from ..train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    model: str = "shapes"
    """shapes, a diffusion model, or shapes-flow, a flow-matching one."""
    dir: str = "prefloop-demo"
    seed: int = 0
    quick: bool = False
    """A minute instead of five, with too few prompts to prove anything."""

    def __post_init__(self) -> None:
        if self.model not in BUILT_IN:
            raise unknown("model", self.model, tuple(BUILT_IN))
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"seed must be between 0 and {2**31 - 1}, got {self.seed}")


@dataclass(frozen=True)
class Stages:
    generate: "GenerateConfig"
    train: "TrainConfig"
    eval: "EvalConfig"


def stages(config: DemoConfig) -> Stages:
    """The configs of the stages: default options except for the amount of work, which `--quick` reduces further."""
    from ..eval.config import EvalConfig
    from ..generate.config import GenerateConfig
    from ..train.config import TrainConfig

    folder = Path(config.dir)
    quick = config.quick
    name = f"{config.seed}{config.model.removeprefix('shapes')}{'-quick' if quick else ''}"
    output = str(folder / f"tuned-{name}")
    generation = GenerateConfig(
        model=config.model, seed=config.seed, limit=16 if quick else N_PROMPTS, images_per_prompt=2 if quick else 4
    )
    size: dict[str, Any] = {"max_train_steps": 4, "train_batch_size": 8, "lr_warmup_steps": 2} if quick else {}
    training = TrainConfig(
        model=config.model,
        output_dir=output,
        labelers=("pickscore",),
        seed=config.seed,
        where=None if quick else CLEAR,
        **size,
    )
    evaluation = EvalConfig(
        model=output,
        baseline=config.model,
        scorers=("oracle", "hps", "clip", "pickscore", "aesthetics"),
        checkpoints={"hps": "shapes", "clip": "shapes", "pickscore": "shapes", "aesthetics": "shapes"},
        limit=8 if quick else None,
        images_per_prompt=1 if quick else 2,
        seed=config.seed + 1_000_000,
        report=str(folder / f"report-{name}"),
    )
    return Stages(generation, training, evaluation)


N_PROMPTS = 350
CLEAR = "margin > 3"  # logits of PickScore: pairs whose winner is clear to it


def demo(config: DemoConfig) -> dict:
    """Generate, label with PickScore, train, and evaluate on held-out prompts.

    A second call does only what is missing.

    Returns:
        The result of `evaluate`.
    """
    from ..eval.stage import evaluate
    from ..generate.stage import generate
    from ..relabel.config import RelabelConfig
    from ..relabel.stage import relabel
    from ..train.stage import train

    planned = stages(config)
    store = PairStore.create(Path(config.dir) / f"store{config.model.removeprefix('shapes')}")
    generate(planned.generate, store)
    relabel(RelabelConfig(scorers=("pickscore",), checkpoints={"pickscore": "shapes"}), store)
    if not _finished(planned.train):
        train(planned.train, store)
    return evaluate(planned.eval, store)


def _finished(config: "TrainConfig") -> bool:
    """Whether the same training has already finished."""
    result = read_result(Path(config.output_dir))
    return result is not None and result.get("config") == json.loads(json.dumps(config.resolved()))
