"""Settings that are automatic, as they are chosen for the machine when a run begins."""

from dataclasses import replace
from pathlib import Path

import torch

from ..models.families import Family
from .config import TrainConfig
from .ranks import Ranks
from .run_folder.choices import read_choices, write_choices


def with_choices(config: TrainConfig, family: Family, device: torch.device, ranks: Ranks) -> TrainConfig:
    """The settings with gradient checkpointing on or off. A resumed run keeps what was chosen when it began."""
    if config.gradient_checkpointing != "auto":
        return config
    output, chosen = Path(config.output_dir), [False]

    def choose() -> None:
        kept = read_choices(output).get("gradient_checkpointing")
        if isinstance(kept, bool):
            chosen[0] = kept
            return
        from .cost.dry_run import cost_settings_on  # slow to import

        chosen[0] = cost_settings_on(device, config, family, ranks.world).gradient_checkpointing
        write_choices(output, {"gradient_checkpointing": chosen[0]})

    ranks.on_main(choose)
    return replace(config, gradient_checkpointing=ranks.from_main(chosen[0]))
