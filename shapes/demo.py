"""The settings of the demo: one round of the loop on the built-in world."""

from dataclasses import dataclass
from typing import Any

from ..core.validate import unknown
from ..loop.config import LoopConfig, LoopSettings
from ..models.names import BUILT_IN

N_PROMPTS = 350
CLEAR = 3.0  # logits of PickScore: pairs whose winner is clear to it


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    model: str = "shapes"
    """shapes, a diffusion model, or shapes-flow, a flow-matching one."""
    output_dir: str | None = None
    """Folder of the loop; prefloop-demo if not given, followed by what other options ask for, such as -flow."""
    seed: int = 0
    device: str | None = None
    """cuda, mps or cpu; the best available if not given."""
    quick: bool = False
    """A minute instead of five, with too few prompts to prove anything."""

    def __post_init__(self) -> None:
        if self.model not in BUILT_IN:
            raise unknown("model", self.model, tuple(BUILT_IN))

    @property
    def folder(self) -> str:
        """Where the loop is: unless a folder is given, every model, seed and amount of work has its own."""
        if self.output_dir is not None:
            return self.output_dir
        seed = f"-seed-{self.seed}" if self.seed else ""
        return f"prefloop-demo{self.model.removeprefix('shapes')}{seed}{'-quick' if self.quick else ''}"


def demo_settings(config: DemoConfig) -> LoopSettings:
    """Default options except for the amount of work, which `--quick` reduces further."""
    quick = config.quick
    training: dict[str, Any] = {"max_train_steps": 4, "train_batch_size": 8, "lr_warmup_steps": 2} if quick else {}
    return LoopSettings(
        LoopConfig(
            model=config.model,
            output_dir=config.folder,
            rounds=1,
            min_margin=0.0 if quick else CLEAR,
            seed=config.seed,
            device=config.device,
        ),
        generate={"limit": 16 if quick else N_PROMPTS, "images_per_prompt": 2 if quick else 4},
        relabel={"scorers": ("pickscore",), "checkpoints": {"pickscore": "shapes"}},
        train=training,
        eval={
            "scorers": ("oracle", "hps", "clip", "pickscore", "aesthetics"),
            "checkpoints": {"hps": "shapes", "clip": "shapes", "pickscore": "shapes", "aesthetics": "shapes"},
            "limit": 8 if quick else None,
            "images_per_prompt": 1 if quick else 2,
            "seed": config.seed + 1_000_000,
        },
    )
