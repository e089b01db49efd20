"""What a run must hold on to in order to go on bit for bit: weights, optimizer, schedule, scaler, average."""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from ..store import IntegrityError, UsageError
from .checkpoint import latest_checkpoint, save_checkpoint
from .config import TrainConfig
from .data import TrainingData
from .folder import cut_table
from .policy import Policy

TABLES = ("metrics", "validation")


class State:
    """Writes and reads the checkpoints of one run."""

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        policy: Policy,
        optimizer: Any,
        schedule: Any,
        ema: EMAModel | None,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.data, self.policy, self.accelerator = config, data, policy, accelerator
        self.optimizer, self.schedule, self.ema = optimizer, schedule, ema
        self.output = Path(config.output_dir)
        self.fingerprint = data.pairs.fingerprint()

    def _parts(self) -> dict[str, Any]:
        parts = {
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.accelerator.scaler,
            "ema": self.ema,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def save(self, step: int) -> None:
        """Write checkpoint-STEP, with a `unet/` or a LoRA that diffusers loads; by the main process."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return

        def write(folder: Path) -> None:
            state = {name: value.contiguous().cpu() for name, value in self.policy.trainable_state().items()}
            save_file(state, folder / "trainable.safetensors")
            torch.save({name: part.state_dict() for name, part in self._parts().items()}, folder / "optimizer.pt")
            self.policy.save_weights(folder, self.data.family)

        about = {"config": self.config.identity(), "pairs": self.fingerprint, "n_pairs": len(self.data.pairs.train)}
        save_checkpoint(self.output, step, about, write, self.config.checkpoints_total_limit)

    def restore(self) -> int:
        """Take up the newest checkpoint that verifies; its step, 0 where there is none.

        Raises:
            UsageError: where it is of other settings.
            IntegrityError: where it is of another list of pairs.
        """
        main = self.accelerator.is_main_process
        found = latest_checkpoint(self.output)
        if found is None:
            for table in TABLES if main else ():
                (self.output / f"{table}.csv").unlink(missing_ok=True)
            return 0
        path, manifest = found
        if manifest["config"] != self.config.identity():
            raise UsageError(
                f"{self.output} holds a run with other settings; give them again, --overwrite or another folder"
            )
        if manifest["pairs"] != self.fingerprint:
            raise IntegrityError(
                f"{path} was trained on another list of pairs ({manifest['n_pairs']} then, {len(self.data.pairs.train)} now); "
                "give --overwrite or another folder"
            )
        device = self.accelerator.device
        self.policy.load_trainable_state(load_file(path / "trainable.safetensors", device=str(device)))
        rest: dict[str, Any] = torch.load(path / "optimizer.pt", map_location=device, weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(rest[name])
        step = manifest["step"]
        if main:
            for table in TABLES:
                cut_table(self.output / f"{table}.csv", step)
            print(f"going on from step {step} in {self.output}", file=sys.stderr)
        self.accelerator.wait_for_everyone()
        return step
