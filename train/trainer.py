"""The training loop: from labelled pairs in the store to a folder that diffusers loads."""

import json
import math
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from torch import Tensor

from ..core.errors import Interrupted, cannot_write, is_full
from ..core.json import plain
from ..core.progress import progress, quiet_libraries
from ..core.signals import StopSignal
from ..models.model import Model
from ..models.resolve import find_model, with_parts
from ..store import NumericalError, PairStore, PrefloopError
from ..store.runs import Run, run
from .checkpoint import written_badly
from .config import TrainConfig
from .data import Batch
from .distributed import at_once, on_cpu
from .export.result import Provenance, beta_sum, write_result
from .monitor.diagnose import verdicts
from .monitor.monitor import Monitor
from .monitor.plots import plot_training
from .monitor.tables import read_rows
from .objective import pair_losses, shown
from .optimizers import learning_rate, optimizer_for, optimizer_name
from .pair_denoiser import PairDenoiser
from .policy import Policy, load_unet
from .preflight import refuse_impossible
from .prepare import data_for_run, with_reference_errors
from .resources import checkpoint_bytes, levers
from .run_folder.claim import claimed
from .run_folder.place import refuse_both, refuse_place
from .state import TABLES, State

LOG_EVERY = 10
Scalar = int | float | str | bool  # what every tracker takes


def train(
    config: TrainConfig,
    store: PairStore,
    *,
    resume: bool = False,
    overwrite: bool = False,
    stop: StopSignal | None = None,
) -> dict:
    """Tune a model on the labels of a store.

    An interrupted run is continued by the same call, on the pairs it was begun with. The result lies in `output_dir`: the whole
    pipeline, its U-Net, or a LoRA; `prefloop.json` says what it was made from, `metrics.csv` and `validation.csv` how it went.

    Args:
        resume: go on with a finished run, where max_train_steps has grown.
        overwrite: begin again in a folder that holds a run; the old one stays until the new one has a checkpoint.
        stop: has heard the signals since before this call.

    Returns:
        n_pairs, steps, loss, implicit_accuracy, validation (its last row for all timesteps), output_dir, beta_mean, beta_sum.

    Raises:
        UsageError: where the folder holds a finished run, a run with other settings, or something else, or is one that the run
            reads, or where the settings cannot be run on this machine.
        NumericalError: where a loss or gradient is not finite; nothing is written then.
        PrefloopError: where memory or the disk runs out, a package is not installed, or the result could not be pushed to the hub.
    """
    refuse_both(resume, overwrite)
    output = Path(config.output_dir)
    refuse_impossible(config)
    with (stop or StopSignal()).listening() as stop, ExitStack() as held:
        model = with_parts(find_model(config.model, config.revision), config.init_from, config.vae)
        refuse_place(config, store.path, model)
        stop.check("nothing was trained yet")
        AcceleratorState._reset_state()  # else a second run of a process keeps the first one's precision
        tracker: dict[str, Any] = (
            {"log_with": config.report_to, "project_dir": str(output / "logs")} if config.report_to else {}
        )
        accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=on_cpu(config.cpu), **tracker)
        main = accelerator.is_main_process
        at_once(
            accelerator,
            lambda: held.enter_context(claimed(output, config, resume, overwrite, checkpoint_bytes(config, model))),
        )
        # one row for the run, whatever the number of processes
        with run(store, "train", config) if main else nullcontext(Run(uuid4(), "train", {})) as this:
            try:
                trainer = Trainer(config, store, stop, accelerator, model, overwrite)
                this.summary |= trainer.train(str(this.run_id))
            except torch.OutOfMemoryError as error:
                raise PrefloopError(levers(config)) from error
            except (OSError, RuntimeError, SafetensorError) as error:
                if (cause := written_badly(error)) is None or not is_full(cause):
                    raise
                raise cannot_write(output, cause) from error
    return this.summary


class Trainer:
    def __init__(
        self,
        config: TrainConfig,
        store: PairStore,
        stop: StopSignal,
        accelerator: Accelerator | None = None,
        model: Model | None = None,
        overwrite: bool = False,
    ) -> None:
        quiet_libraries()
        self.overwrite = overwrite
        self.config, self.store, self.stop = config, store, stop
        self.output = Path(config.output_dir)
        self.accelerator = accelerator or Accelerator(mixed_precision=config.mixed_precision, cpu=config.cpu)
        self.main = self.accelerator.is_main_process
        if config.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        device = self.accelerator.device
        self.model = model or with_parts(find_model(config.model, config.revision), config.init_from, config.vae)
        with self.accelerator.main_process_first():
            self.data = data_for_run(config, store, self.model, device, stop, main=self.main)
        self.labelers = {
            name: json.loads(settings)
            for name, settings in store.rows(
                "select labeler, config from labelers where labeler in (select unnest(?)) order by labeler",
                [self.data.pairs.labelers()],
            )
        }
        self.policy = Policy(load_unet(self.model), config, self.data.family).to(device)
        self.rate = learning_rate(config, self.accelerator.num_processes)
        optimizer = optimizer_for(config, self.data.family, self.policy.parameters(), self.rate)
        self.clips = optimizer_name(config, self.data.family) != "adafactor"
        self.lr_scheduler = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        self.unet, self.optimizer = self.accelerator.prepare(self.policy.unet, optimizer)
        self.ema = None
        if config.ema_decay is not None:
            self.ema = EMAModel(self.policy.parameters(), decay=config.ema_decay, foreach=True)
        self.recent: deque[Tensor] = deque(maxlen=LOG_EVERY)  # as step returns them
        self.state = State(
            config,
            self.data,
            self.policy,
            self.optimizer,
            self.lr_scheduler,
            self.ema,
            self.accelerator,
            self.recent,
            self.model.model_id,
        )
        self.denoiser = PairDenoiser(self.policy, self.unet, config, self.accelerator)
        self.monitor = Monitor(config, self.data, self.policy, self.denoiser, self.model, self.accelerator, stop)
        self.global_step = 0
        stop.check("nothing was trained yet")

    def train(self, run_id: str) -> dict:
        config = self.config
        self.global_step = self.state.restore()
        if config.reference_draws:
            with self.accelerator.main_process_first():
                self.data = with_reference_errors(
                    self.data, self.denoiser, self.store, self.model, self.global_step, self.stop
                )
        if config.report_to:
            settings = {
                name: value if isinstance(value, Scalar) else str(value) for name, value in asdict(config).items()
            }
            self.accelerator.init_trackers(config.tracker_project_name, config=settings)
        self.monitor.begin(self.global_step)
        with (
            closing(self.data.prefetch(self._starts(), config.train_batch_size)) as micro_batches,
            progress(config.max_train_steps, "training", initial=self.global_step)
            if self.main
            else nullcontext() as bar,
        ):
            while self.global_step < config.max_train_steps:
                self.recent.append(self.step(micro_batches))
                self.global_step += 1
                if bar is not None:
                    bar.update()
                last = self.global_step == config.max_train_steps
                if self.global_step % LOG_EVERY == 0 or last:
                    line = self.monitor.log(self.global_step, self.recent)
                    if bar is not None:
                        bar.set_postfix_str(line)
                if self.global_step % config.validation_steps == 0 or last:
                    last = self.monitor.validate(self.global_step) or last
                if config.sample_steps and (self.global_step % config.sample_steps == 0 or last):
                    self.monitor.sample(self.global_step)
                stopping = self.monitor.any_process(self.stop.requested)
                if self.global_step % config.checkpointing_steps == 0 or last or stopping:
                    self.state.save(self.global_step)
                if last:
                    break
                if stopping:
                    same = "the same command without --overwrite" if self.overwrite else "the same command"
                    raise Interrupted(
                        f"interrupted: step {self.global_step} of {config.max_train_steps} is in {self.output}; {same} goes on from here",
                        self.stop.number or signal.SIGTERM,  # it may have come to another process
                    )
        self.accelerator.end_training()
        return self._finish(run_id)

    def _starts(self) -> Iterator[int]:
        """Where the micro-batches of this process begin, from this step to the last."""
        config, world, rank = self.config, self.accelerator.num_processes, self.accelerator.process_index
        n = config.gradient_accumulation_steps
        for micro in range(self.global_step * n, config.max_train_steps * n):
            yield (micro * world + rank) * config.train_batch_size

    def step(self, micro_batches: Iterator[list[Batch]] | None = None) -> Tensor:
        """One optimizer step over all micro-batches; raises before the weights change where anything is not finite.

        Returns:
            looks.METRICS without the step, on the device: reading them would wait for it.
        """
        config, accelerator, n = self.config, self.accelerator, self.config.gradient_accumulation_steps
        micro_batches = micro_batches or self.data.prefetch(self._starts(), config.train_batch_size)
        parts, pairs = [], []
        for micro in range(n):
            batches = next(micro_batches)
            these = [pair for batch in batches for pair in batch.pairs]
            pairs += [str(pair.pair_id) for pair in these]
            with nullcontext() if micro == n - 1 else accelerator.no_sync(self.unet):
                errors = self.denoiser.errors(batches)
                loss = pair_losses(errors, these, config)
                accelerator.backward(loss.mean() / n)
            parts.append(shown(errors, loss, config))
        norm = self.clip_gradients()
        mean = torch.stack(parts).mean(dim=0)
        rate = self.lr_scheduler.get_last_lr()[0]
        row = torch.cat([mean, torch.tensor([rate, 0.0], device=mean.device)])
        row[-1] = norm
        finite = torch.isfinite(torch.stack([mean[0], norm])).tolist()  # the one wait of a step
        # a gradient that overflows in half precision is the scaler's affair: it skips the step and lowers its scale
        if not finite[0] or not (finite[1] or accelerator.scaler is not None):
            self.optimizer.zero_grad(set_to_none=True)
            raise self._not_finite(
                "gradient norm" if finite[0] else "loss", float(row[-1] if finite[0] else mean[0]), pairs
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.lr_scheduler.step()
        if self.ema is not None:
            self.ema.step(self.policy.parameters())
        return row

    def clip_gradients(self) -> Tensor:
        """The gradient's norm, from before it was clipped; Adafactor clips by itself, and once is enough."""
        most = self.config.max_grad_norm if self.clips else math.inf
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), most)
        assert norm is not None
        return norm.detach().float()

    def _not_finite(self, what: str, value: float, pairs: list[str]) -> NumericalError:
        named = ", ".join(pairs[:4]) + (" …" if len(pairs) > 4 else "")
        return NumericalError(
            f"the {what} is {value} at step {self.global_step}, nothing was changed; pairs {named}; "
            "lower --learning-rate or --beta, or look at those pairs"
        )

    def _finish(self, run_id: str) -> dict:
        config = self.config
        tables = [read_rows(self.output / f"{table}.csv") for table in TABLES]
        summary = {
            "steps": self.global_step,
            "n_pairs": len(self.data.pairs.train),
            "loss": self.monitor.last_metrics.get("loss"),
            "implicit_accuracy": self.monitor.last_metrics.get("implicit_accuracy"),
            "validation": self.monitor.last_look,
            "beta_mean": None if config.loss == "sft" else config.beta,
            "beta_sum": None if config.loss == "sft" else beta_sum(config, self.data),
            "verdicts": [asdict(verdict) for verdict in verdicts(*tables, learning_rate=config.learning_rate)],
            "output_dir": str(self.output),
        }
        if self.accelerator.is_main_process:
            plot_training(self.output, config.learning_rate)
            if self.ema is not None:
                self.ema.copy_to(self.policy.parameters())
            where = Provenance(run_id, self.labelers, self.accelerator.num_processes)
            write_result(self.output, config, self.policy, self.model, self.data, where, summary)
        return plain(summary)
