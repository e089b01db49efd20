"""Logging, validation, samples and early stopping."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ...core.hashing import RESULT_FILE
from ...core.signals import StopSignal
from ...models.model import Model
from ..batch import Batch
from ..config import TrainConfig
from ..data import TrainingData
from ..objective import BATCH_METRICS
from ..pair_denoiser import Errors, PairDenoiser
from ..policy import Policy
from ..ranks import Ranks
from ..run_folder.marker import RUN_DIR
from ..run_folder.tables import append_rows
from .evidence import should_stop
from .samples import Samples
from .tables import number, read_rows, validation_passes
from .validation import COLUMNS, Validation

METRICS = ("step", *BATCH_METRICS, "learning_rate", "grad_norm")
_SCALARS = (int, float, str, bool)  # what every tracker takes


class Monitor:
    """Follows a run; only the main process writes."""

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
        self.ranks, self.sharded = Ranks.of(accelerator), policy.sharded
        self.model, self.output = model, Path(config.output_dir)
        self.validation = Validation(data, config)
        self.samples = Samples(data, policy, model, config, self.output, self.ranks)
        self.last_metrics: dict[str, float] = {}
        self.last_validation: dict[str, Any] = {}

    def begin(self, step: int) -> None:
        """Start the trackers, and compute the reference's errors on the held-out pairs, once per run; before the first step the
        model is its reference."""
        if self.config.report_to:
            settings = self.config.resolved().items()
            plain = {name: value if isinstance(value, _SCALARS) else str(value) for name, value in settings}
            self.accelerator.init_trackers(self.config.tracker_project_name, config=plain)
        if step:
            self._load_last_rows()
        if self.sharded:  # the model runs only in all processes at once
            self._begin(step)
        else:
            self.ranks.on_main(lambda: self._begin(step))
        self.validation.follow(self.ranks.from_main(self.validation.plan))  # of the run that is resumed

    def _begin(self, step: int) -> None:
        if not step:
            self.samples.keep_references(self.accelerator.device)
        if not len(self.validation):
            return
        kept = self.output / RUN_DIR
        kept.mkdir(exist_ok=True)
        loaded = bool(step) and self.ranks.is_main and self.validation.load_reference(kept)
        if self.ranks.from_main(loaded) if self.sharded else loaded:
            return
        denoiser = self.denoiser.with_initial_weights(self.model) if step else self.denoiser
        errors_of = self._unless_stopped(denoiser.reference_errors)
        if self.ranks.is_main:
            self.validation.compute_reference(errors_of, kept)
        else:
            self.validation.take_part(errors_of)
        if step == 0 and self.config.reference is not None:
            self._run_validation(0, self._unless_stopped(self.denoiser.policy_errors))
        elif step == 0 and self.ranks.is_main:
            self._keep_validation(self.validation.run_as_reference(0))

    def _unless_stopped(self, errors_of: Callable[[list[Batch]], Errors]) -> Callable[[list[Batch]], Errors]:
        def checked(batches: list[Batch]) -> Errors:
            if self.sharded:
                self.ranks.check(self.stop, "nothing was trained yet")
            else:
                self.stop.check("nothing was trained yet")
            return errors_of(batches)

        return checked

    def _load_last_rows(self) -> None:
        """The numbers that were logged last, from the tables."""
        for row in read_rows(self.output / "metrics.csv")[-1:]:
            # cells are empty without a reference
            self.last_metrics = {name: number(row[name] or math.nan) for name in METRICS[1:]}
        for row in validation_passes(read_rows(self.output / "validation.csv"))[-1:]:
            integers = ("step", "n_pairs", "n_prompts")
            kinds = (
                dict.fromkeys(integers, int)
                | {"bin": str}
                | dict.fromkeys(("timestep_low", "timestep_high"), _timestep)
            )
            self.last_validation = {name: kinds.get(name, number)(row[name]) for name in COLUMNS}

    def _run_validation(self, step: int, errors_of: Callable[[list[Batch]], Errors] | None = None) -> None:
        errors_of = errors_of or self.denoiser.policy_errors
        if self.ranks.is_main:
            self._keep_validation(self.validation.run(errors_of, step))
        else:
            self.validation.take_part(errors_of)

    def _keep_validation(self, rows: list[dict[str, Any]]) -> None:
        append_rows(self.output / "validation.csv", COLUMNS, rows)
        self.last_validation = rows[0]
        for row in rows if self.config.report_to else ():
            prefix = "validation" if row["bin"] == "all" else f"validation/bin {row['bin']}"
            values = {f"{prefix}/{name}": row[name] for name in COLUMNS[4:] if row[name] is not None}
            self.accelerator.log(values, step=row["step"])

    def validate(self, step: int) -> bool:
        """Run a validation pass; whether training stops early because the passes no longer improve."""
        stops = False
        if not self.ranks.is_main:
            if self.sharded and len(self.validation):
                self._run_validation(step)
        elif self.validation.reference is not None:
            self._run_validation(step)
            stops = self._stops()
        return self.any_process(stops)

    def catch_up(self, step: int, recent: Sequence[Tensor]) -> None:
        """Log and validate the last step of a run that was to be longer when it was interrupted there, unless that was done."""
        tables = [read_rows(self.output / name) for name in ("metrics.csv", "validation.csv")]
        is_logged, is_validated = self.ranks.from_main(
            [bool(rows) and rows[-1]["step"] == str(step) for rows in tables]
        )
        if recent and not is_logged:
            self.log(step, recent)
        if not is_validated:
            self.validate(step)

    def stopped_at(self, step: int) -> bool:
        """Whether the run was stopped early after this step and lacks only its result; one that has it was asked to go on."""
        if not self.config.early_stopping:
            return False
        passes = validation_passes(read_rows(self.output / "validation.csv"))
        lacks_result = not (self.output / RESULT_FILE).exists()
        stopped = lacks_result and bool(passes) and passes[-1]["step"] == str(step) and self._stops()
        return self.ranks.from_main(stopped)

    def _stops(self) -> bool:
        patience = self.config.early_stopping
        metrics, rows = (read_rows(self.output / name) for name in ("metrics.csv", "validation.csv"))
        return bool(patience) and should_stop(metrics, rows, patience)

    def sample(self, step: int) -> None:
        if self.ranks.is_main or self.sharded:
            self.samples.write(step, self.accelerator.device)
        self.accelerator.wait_for_everyone()

    def log(self, step: int, recent: Sequence[Tensor]) -> str:
        """Append the mean of the last steps, over all processes, to metrics.csv; the line for the progress bar."""
        mean: Any = self.accelerator.reduce(torch.stack(list(recent)).mean(dim=0), "mean")
        row: dict[str, float] = dict(zip(METRICS[1:], mean.tolist(), strict=True))
        known = {name: value for name, value in row.items() if not math.isnan(value)}  # not every loss has all of them
        if self.accelerator.is_main_process:
            append_rows(self.output / "metrics.csv", METRICS, [{"step": step, **known}])
        if self.config.report_to:
            self.accelerator.log({f"train/{name}": value for name, value in known.items()}, step=step)
        self.last_metrics = row
        line = f"loss {row['loss']:.4g}"
        if "implicit_accuracy" in known:
            line += (
                f", implicit accuracy {row['implicit_accuracy']:.3f}, error minus the reference's: "
                f"chosen {row['chosen_error_delta']:+.3g}, rejected {row['rejected_error_delta']:+.3g}"
            )
        return line

    def any_process(self, condition: bool) -> bool:
        """Whether the condition holds in any of the processes, so that all of them do the same."""
        if self.accelerator.num_processes == 1:
            return condition
        count: Any = self.accelerator.reduce(torch.tensor([float(condition)], device=self.accelerator.device), "sum")
        return bool(count.item())


def _timestep(cell: str) -> float:
    """As it was written: whole for diffusion models, 1000 sigma for flow matching."""
    return int(cell) if cell.isdigit() else float(cell)
