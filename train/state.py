"""Everything a bit-exact resume needs: weights, optimizer, learning rate schedule, scaler, EMA, metrics of the last steps."""

import pickle
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..store import IntegrityError, PrefloopError, UsageError
from .background import BackgroundWriter, host_copy
from .checkpoint import latest_checkpoint, save_checkpoint
from .config import TrainConfig
from .data import TrainingData
from .export.result import canonicalize_files
from .placement import follow_layout
from .policy import Policy
from .run_folder.files import current_umask, sync_file
from .run_folder.overwrite import alternatives, drop_previous, other_settings
from .run_folder.tables import truncate_table
from .sharding import gathered, own_parts

TABLES = ("metrics", "validation")
LORA_STATE = "trainable.safetensors"
# what the loaders raise if a file is not what a checkpoint has under that name
_UNUSABLE = (PrefloopError, OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError)
_UNUSABLE += (pickle.UnpicklingError, SafetensorError)


class State:
    """Writes and reads the checkpoints of one run.

    Args:
        recent: metrics of the last steps, whose mean is a row of metrics.csv.
        model_id: id of the model that is trained.
        reference_id: id of the reference, if it is another model.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        policy: Policy,
        optimizer: Any,
        lr_scheduler: Any,
        ema: EMAModel | None,
        accelerator: Accelerator,
        recent: deque[Tensor],
        model_id: UUID,
        reference_id: UUID | None = None,
    ) -> None:
        self.config, self.data, self.policy, self.accelerator = config, data, policy, accelerator
        self.optimizer, self.lr_scheduler, self.ema = optimizer, lr_scheduler, ema
        self.recent = recent
        self.model_id, self.reference_id = str(model_id), reference_id and str(reference_id)
        self.output = Path(config.output_dir)
        self.fingerprint = data.pairs.fingerprint()
        self.writer = BackgroundWriter()
        """Writes one checkpoint at a time, in the main process."""

    def _parts(self) -> dict[str, Any]:
        parts = {
            "optimizer": self.optimizer,
            "lr_scheduler": self.lr_scheduler,
            "scaler": self.accelerator.scaler,
            "ema": self.ema,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def save(self, step: int) -> None:
        """Write checkpoint-STEP, with a `unet/` or a LoRA that diffusers loads; the main process writes."""
        self.begin_save(step)
        self.writer.wait()

    def begin_save(self, step: int) -> None:
        """Begin to write checkpoint-STEP of the weights as they are, and return as soon as they are copied; see `writer`."""
        self.writer.wait()  # rather than hold two copies
        recent = self._recent_of_all()
        main = self.accelerator.is_main_process
        policy = self.policy.gathered(main)
        parts = {name: part.state_dict() for name, part in self._parts().items()} | {"recent": recent}
        if self.policy.sharded:
            parts = gathered(parts, main)
        self.accelerator.wait_for_everyone()
        if not main:
            return
        if not self.policy.sharded:
            parts = host_copy(parts)
        learned = {name: value.contiguous() for name, value in policy.trainable_state().items()}
        # in peft's own names; all weights are in the component's folder
        lora_state = host_copy(learned) if policy.lora else None
        write_weights = policy.copy_weights()

        def write(folder: Path) -> None:
            if lora_state is not None:
                save_file(lora_state, folder / LORA_STATE)
            with open(folder / "optimizer.pt", "wb") as file:  # torch's own writer drops the system's error
                torch.save(parts, file)
            write_weights(folder)
            canonicalize_files(folder)

        about = {
            "config": self.config.identity(),
            "model": self.model_id,
            **({} if self.reference_id is None else {"reference": self.reference_id}),
            "pairs": self.fingerprint,
            "n_pairs": len(self.data.pairs.train),
            "processes": self.accelerator.num_processes,
        }
        for table in TABLES:  # the rows of a checkpoint's steps must be on disk before it
            sync_file(self.output / f"{table}.csv")
        n_bytes = sum(tensor.nbytes for tensor in [*learned.values(), *_tensors(parts)])

        keep, mask = self.config.checkpoints_total_limit, current_umask()

        def write_checkpoint() -> None:
            save_checkpoint(self.output, step, about, write, keep, n_bytes, mask)
            drop_previous(self.output)

        self.writer.start(write_checkpoint)

    def _recent_of_all(self) -> Tensor | None:
        """Metrics of the last steps in every process; (processes, steps, metrics)."""
        if not self.recent:
            return None
        recent: Any = self.accelerator.gather(torch.stack(list(self.recent))[None])
        return recent.cpu()

    def restore(self) -> int:
        """Load the newest valid checkpoint; returns its step, 0 if there is none.

        Raises:
            UsageError: if it was written with other settings, or by another number of processes.
            IntegrityError: if it belongs to another model or list of pairs, or `save` did not write it.
        """
        main = self.accelerator.is_main_process
        latest = latest_checkpoint(self.output)
        if latest is None:
            for table in TABLES if main else ():
                (self.output / f"{table}.csv").unlink(missing_ok=True)
            return 0
        path, manifest = latest
        self._refuse_other(path, manifest)
        try:
            self._load(path)
        except _UNUSABLE as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).strip().split("\n")[0]
            raise IntegrityError(
                f"{path} cannot be loaded: {type(error).__name__}: {reason}; remove it to resume from the checkpoint before"
            ) from error
        step = manifest["step"]
        if main:
            for table in TABLES:
                truncate_table(self.output / f"{table}.csv", step)
            print(f"resuming from step {step} in {self.output}", file=sys.stderr)
        return step

    def _refuse_other(self, path: Path, manifest: dict) -> None:
        if not self.config.continues(manifest.get("config")):
            raise UsageError(other_settings(self.output))
        changed = [self.config.model] * (manifest.get("model", self.model_id) != self.model_id)
        changed += [str(self.config.reference)] * (manifest.get("reference") != self.reference_id)
        if changed:
            raise IntegrityError(
                f"{changed[0]} has changed since the run in {self.output} began; restore it, or give {alternatives(self.output)}"
            )
        if manifest.get("pairs") != self.fingerprint:
            raise IntegrityError(
                f"{path} was trained on another list of pairs ({manifest.get('n_pairs')} then, "
                f"{len(self.data.pairs.train)} now); give {alternatives(self.output)}"
            )
        then, now = manifest.get("processes"), self.accelerator.num_processes
        if then is not None and then != now:  # which pairs a step sees depends on it
            n_micro = then * self.config.gradient_accumulation_steps
            same = f", where --gradient-accumulation-steps {n_micro // now} keeps the pairs per step" * (
                n_micro % now == 0
            )
            raise UsageError(
                f"the run in {self.output} began with {then} process{'es' * (then > 1)} and this is {now}; "
                f"use {then}, for example with `torchrun --nproc-per-node {then}`, or give {alternatives(self.output)}{same}"
            )

    def _load(self, path: Path) -> None:
        device = self.accelerator.device
        device = torch.device("cpu") if device.type == "cpu" else device  # a CPU has no number in a file
        split = self.policy.parameters() if self.policy.sharded else None
        on = "cpu" if split else str(device)  # mapped from the file, of which a process then reads its part
        self.policy.load_trainable_state(self._weights(path, on))
        states = load_parts(path / "optimizer.pt", self._parts(), device, split)
        self.recent.clear()
        if states.get("recent") is not None:
            mine = states["recent"][self.accelerator.process_index]
            self.recent.extend(mine.to(self.accelerator.device).unbind())

    def _weights(self, path: Path, device: str) -> dict[str, Tensor]:
        """The trained weights of a checkpoint, by the names of the component's parameters."""
        if self.policy.lora or (path / LORA_STATE).exists():  # earlier ones had all weights there too
            return load_file(path / LORA_STATE, device=device)
        files = (path / self.policy.family.component).glob("*.safetensors")  # large models are written in several
        state = {name: value for file in files for name, value in load_file(file, device=device).items()}
        return {name: state[name] for name in self.policy.trainable_state() if name in state}


def load_parts(
    path: Path, parts: Mapping[str, Any], device: torch.device, split: Sequence[Tensor] | None = None
) -> dict[str, Any]:
    """Load the state of each part; returns all that the file holds, on the CPU.

    From there the optimizer moves its moments to its parameters and leaves the step counters, which it reads on the CPU: from a
    GPU every step would wait for each of them, one per weight.

    Args:
        split: the parameters, if they are split over the processes; each then loads its parts.
    """
    states: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=split is not None)
    if split is not None:
        states = own_parts(states, split)
    for name, part in parts.items():
        part.load_state_dict(states[name])
        if name == "optimizer":
            follow_layout(part)
        if isinstance(part, EMAModel):
            part.to(device)
    return states


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for part in state.values() if isinstance(state, dict) else state:
            yield from _tensors(part)
