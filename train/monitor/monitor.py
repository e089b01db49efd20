"""What a run tells while it is under way: tables, trackers, the progress line, pictures, and when to end early."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ...core.signals import StopSignal
from ...models.resolve import Model
from ..config import TrainConfig
from ..data import Batch, TrainingData
from ..objective import SHOWN
from ..pair_denoiser import Errors, PairDenoiser
from ..policy import Policy
from ..run_folder.mark import RUN
from ..run_folder.tables import add_rows
from .evidence import should_stop
from .samples import Samples
from .tables import looks, read_rows
from .validation import COLUMNS, Validation

METRICS = ("step", *SHOWN, "learning_rate", "grad_norm")


class Monitor:
    """Monitor at a run; only the main process writes."""

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        policy: Policy,
        denoiser: PairDenoiser,
        model: Model,
        accelerator: Accelerator,
        stop: StopSignal | None = None,
    ) -> None:
        self.stop = stop or StopSignal()
        self.config, self.denoiser, self.accelerator = config, denoiser, accelerator
        self.model, self.output = model, Path(config.output_dir)
        self.validation = Validation(data, config)
        self.samples = Samples(data, policy, model, config, self.output)
        self.last_metrics: dict[str, float] = {}
        self.last_look: dict[str, Any] = {}

    def begin(self, step: int) -> None:
        """Have the reference look at the held-out pairs, once for a run; before the first step the model is its reference."""
        if step:
            self._recall()
        if not len(self.validation) or not self.accelerator.is_main_process:
            return
        kept = self.output / RUN
        kept.mkdir(exist_ok=True)
        if step and self.validation.recall_reference(kept):
            return
        denoiser = self.denoiser.with_initial_weights(self.model) if step else self.denoiser
        self.validation.ask_reference(self._unless_stopped(denoiser.reference_errors), kept)
        if step == 0:
            self._look(0, self._unless_stopped(self.denoiser.policy_errors))

    def _unless_stopped(self, errors_of: Callable[[list[Batch]], Errors]) -> Callable[[list[Batch]], Errors]:
        def asked(batches: list[Batch]) -> Errors:
            self.stop.check("nothing was trained yet")
            return errors_of(batches)

        return asked

    def _recall(self) -> None:
        """Take up what was told last, from the tables."""
        for row in read_rows(self.output / "metrics.csv")[-1:]:
            self.last_metrics = {name: float(row[name]) for name in METRICS[1:]}
        for row in looks(read_rows(self.output / "validation.csv"))[-1:]:
            kinds = dict.fromkeys(("step", "timestep_low", "timestep_high", "n_pairs"), int) | {"bin": str}
            self.last_look = {name: kinds.get(name, float)(row[name]) for name in COLUMNS}

    def _look(self, step: int, errors_of: Callable[[list[Batch]], Errors] | None = None) -> None:
        rows = self.validation.look(errors_of or self.denoiser.policy_errors, step)
        add_rows(self.output / "validation.csv", COLUMNS, rows)
        self.last_look = rows[0]
        for row in rows if self.config.report_to else ():
            where = "validation" if row["bin"] == "all" else f"validation/bin {row['bin']}"
            self.accelerator.log({f"{where}/{name}": row[name] for name in COLUMNS[4:]}, step=step)

    def validate(self, step: int) -> bool:
        """Look at the held-out pairs; whether training ends early because it no longer gets better on them."""
        ends = False
        if self.accelerator.is_main_process and self.validation.reference is not None:
            self._look(step)
            patience = self.config.early_stopping
            metrics, rows = (read_rows(self.output / name) for name in ("metrics.csv", "validation.csv"))
            ends = bool(patience) and should_stop(metrics, rows, patience)
        return self.any_process(ends)

    def sample(self, step: int) -> None:
        if self.accelerator.is_main_process:
            self.samples.write(step, self.accelerator.device)
        self.accelerator.wait_for_everyone()

    def log(self, step: int, recent: Sequence[Tensor]) -> str:
        """Append the mean of the last steps, over all processes, to metrics.csv; the line for the progress bar."""
        mean: Any = self.accelerator.reduce(torch.stack(list(recent)).mean(dim=0), "mean")
        row: dict[str, float] = dict(zip(METRICS[1:], mean.tolist(), strict=True))
        known = {name: value for name, value in row.items() if not math.isnan(value)}  # not every loss has all of them
        if self.accelerator.is_main_process:
            add_rows(self.output / "metrics.csv", METRICS, [{"step": step, **known}])
        if self.config.report_to:
            self.accelerator.log({f"train/{name}": value for name, value in known.items()}, step=step)
        self.last_metrics = row
        line = f"loss {row['loss']:.4g}"
        if "implicit_accuracy" in known:
            line += (
                f", implicit accuracy {row['implicit_accuracy']:.3f}, error against the reference's: "
                f"chosen {row['chosen_error_delta']:+.3g}, rejected {row['rejected_error_delta']:+.3g}"
            )
        return line

    def any_process(self, yes: bool) -> bool:
        """Whether it is so in any of the processes: they all do the same then."""
        if self.accelerator.num_processes == 1:
            return yes
        asked: Any = self.accelerator.reduce(torch.tensor([float(yes)], device=self.accelerator.device), "sum")
        return bool(asked.item())
