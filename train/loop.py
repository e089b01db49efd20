"""The training loop: from labelled pairs in the store to a folder that diffusers loads."""

import json
import math
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor

from ..store import NumericalError, PairStore, PrefloopError
from ..store.locks import locked
from ..store.models import find_model, with_parts
from ..store.runs import Run, StopSignal, plain, progress, quiet_libraries, run
from .config import TrainConfig
from .data import Batch
from .errors import Denoising
from .folder import refuse_finished
from .looks import Looks
from .objective import pair_losses, shown
from .optimizers import learning_rate, optimizer_for, optimizer_name
from .plots import plot_training
from .policy import Policy, load_unet
from .preflight import refuse_impossible
from .prepare import prepared, with_reference
from .result import Provenance, beta_sum, write_result
from .state import TABLES, State
from .tables import read_rows
from .verdicts import verdicts

LOG_EVERY = 10
Scalar = int | float | str | bool  # what every tracker takes


def train(config: TrainConfig, store: PairStore, *, resume: bool = False, overwrite: bool = False) -> dict:
    """Tune a model on the labels of a store.

    An interrupted run is continued by the same call. The result lies in `output_dir`: the whole pipeline, its U-Net, or a LoRA;
    `prefloop.json` says what it was made from, `metrics.csv` and `validation.csv` how it went.

    Args:
        resume: go on with a finished run, where max_train_steps has grown.
        overwrite: begin a run anew.

    Returns:
        n_pairs, steps, loss, implicit_accuracy, validation (its last row for all timesteps), output_dir, beta_mean, beta_sum.

    Raises:
        UsageError: where the folder holds a finished run, a run with other settings, or something else, or where the settings
            cannot be run on this machine.
        NumericalError: where a loss or gradient is not finite; nothing is written then.
        PrefloopError: where memory runs out, a package is not installed, or the result could not be pushed to the hub.
    """
    output = Path(config.output_dir)
    refuse_impossible(config)
    output.mkdir(parents=True, exist_ok=True)
    AcceleratorState._reset_state()  # else a second run of a process keeps the first one's precision
    tracker: dict[str, Any] = (
        {"log_with": config.report_to, "project_dir": str(output / "logs")} if config.report_to else {}
    )
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=config.cpu, **tracker)
    main = accelerator.is_main_process
    lock = locked(output / ".lock", f"the training run {output}") if main else nullcontext()
    with lock, StopSignal().listening() as stop:
        if main:
            refuse_finished(output, config, resume, overwrite)
        accelerator.wait_for_everyone()
        # one row for the run, whatever the number of processes
        with run(store, "train", config) if main else nullcontext(Run(uuid4(), "train", {})) as this:
            try:
                this.summary |= _Trainer(config, store, stop, accelerator).train(str(this.run_id))
            except torch.OutOfMemoryError as error:
                raise PrefloopError(_levers(config)) from error
    return this.summary


def _levers(config: TrainConfig) -> str:
    half = max(1, config.train_batch_size // 2)
    levers = []
    if config.train_batch_size > 1:
        more = config.gradient_accumulation_steps * config.train_batch_size // half
        levers.append(f"--train-batch-size {half} --gradient-accumulation-steps {more}")
    if not config.gradient_checkpointing:
        levers.append("--gradient-checkpointing")
    if not config.lora_rank:
        levers.append("--lora-rank 16")
    if config.mixed_precision == "no":
        levers.append("--mixed-precision bf16")
    levers += ["--optimizer adafactor", "--resolution, smaller"]
    return f"memory ran out; checkpoints are kept; try {', or '.join(levers[:3])}; --dry-run estimates what each saves"


class _Trainer:
    def __init__(
        self, config: TrainConfig, store: PairStore, stop: StopSignal, accelerator: Accelerator | None = None
    ) -> None:
        quiet_libraries()
        self.config, self.store, self.stop = config, store, stop
        self.output = Path(config.output_dir)
        self.accelerator = accelerator or Accelerator(mixed_precision=config.mixed_precision, cpu=config.cpu)
        if config.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        device = self.accelerator.device
        self.model = with_parts(find_model(config.model, config.revision), config.unet_init, config.vae)
        with self.accelerator.main_process_first():
            self.data, self.scheduler = prepared(config, store, self.model, device, stop)
        self.labelers = {
            name: json.loads(settings)
            for name, settings in store.rows(
                "select labeler, config from labelers where labeler in (select unnest(?)) order by labeler",
                [self.data.pairs.labelers()],
            )
        }
        self.policy = Policy(load_unet(self.model), config).to(device)
        self.rate = learning_rate(config, self.accelerator.num_processes)
        optimizer = optimizer_for(config, self.data.family, self.policy.parameters(), self.rate)
        self.clips = optimizer_name(config, self.data.family) != "adafactor"
        self.schedule = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        self.unet, self.optimizer = self.accelerator.prepare(self.policy.unet, optimizer)
        self.ema = None
        if config.ema_decay is not None:
            self.ema = EMAModel(self.policy.parameters(), decay=config.ema_decay, foreach=True)
        self.state = State(config, self.data, self.policy, self.optimizer, self.schedule, self.ema, self.accelerator)
        self.denoising = Denoising(self.policy, self.unet, self.scheduler, config, self.accelerator)
        self.looks = Looks(config, self.data, self.policy, self.denoising, self.model, self.accelerator)
        self.step = 0
        self.recent: deque[Tensor] = deque(maxlen=LOG_EVERY)  # as _optimize returns them

    def train(self, run_id: str) -> dict:
        config = self.config
        self.step = self.state.restore()
        if config.cache_reference:
            with self.accelerator.main_process_first():
                self.data = with_reference(self.data, self.denoising, self.store, self.model, self.step, self.stop)
        if config.report_to:
            settings = {
                name: value if isinstance(value, Scalar) else str(value) for name, value in asdict(config).items()
            }
            self.accelerator.init_trackers(config.tracker_project_name, config=settings)
        self.looks.begin(self.step)
        with (
            closing(self.data.ahead(self._starts(), config.train_batch_size)) as micro_batches,
            progress(config.max_train_steps, "training", initial=self.step) as bar,
        ):
            while self.step < config.max_train_steps:
                self.recent.append(self._optimize(micro_batches))
                self.step += 1
                bar.update()
                last = self.step == config.max_train_steps
                if self.step % LOG_EVERY == 0 or last:
                    bar.set_postfix_str(self.looks.log(self.step, self.recent))
                if self.step % config.validation_steps == 0 or last:
                    last = self.looks.validate(self.step) or last
                if config.sample_steps and (self.step % config.sample_steps == 0 or last):
                    self.looks.sample(self.step)
                stopping = self.looks.any_process(self.stop.requested)
                if self.step % config.checkpointing_steps == 0 or last or stopping:
                    self.state.save(self.step)
                if last:
                    break
                if stopping:
                    self.stop.number = self.stop.number or signal.SIGTERM  # it may have come to another process
                    self.stop.check(f"step {self.step} of {config.max_train_steps} is in {self.output}")
        self.accelerator.end_training()
        return self._finish(run_id)

    def _starts(self) -> Iterator[int]:
        """Where the micro-batches of this process begin, from this step to the last."""
        config, world, rank = self.config, self.accelerator.num_processes, self.accelerator.process_index
        n = config.gradient_accumulation_steps
        for micro in range(self.step * n, config.max_train_steps * n):
            yield (micro * world + rank) * config.train_batch_size

    def _optimize(self, micro_batches: Iterator[list[Batch]] | None = None) -> Tensor:
        """One optimizer step over all micro-batches; raises before the weights change where anything is not finite.

        Returns:
            looks.METRICS without the step, on the device: reading them would wait for it.
        """
        config, accelerator, n = self.config, self.accelerator, self.config.gradient_accumulation_steps
        micro_batches = micro_batches or self.data.ahead(self._starts(), config.train_batch_size)
        parts, pairs = [], []
        for micro in range(n):
            batches = next(micro_batches)
            these = [pair for batch in batches for pair in batch.pairs]
            pairs += [str(pair.pair_id) for pair in these]
            with nullcontext() if micro == n - 1 else accelerator.no_sync(self.unet):
                errors = self.denoising.errors(batches)
                loss = pair_losses(errors, these, config)
                accelerator.backward(loss.mean() / n)
            parts.append(shown(errors, loss, config))
        norm = self._clipped()
        mean = torch.stack(parts).mean(dim=0)
        rate = self.schedule.get_last_lr()[0]
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
        self.schedule.step()
        if self.ema is not None:
            self.ema.step(self.policy.parameters())
        return row

    def _clipped(self) -> Tensor:
        """The gradient's norm, from before it was clipped; Adafactor clips by itself, and once is enough."""
        most = self.config.max_grad_norm if self.clips else math.inf
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), most)
        assert norm is not None
        return norm.detach().float()

    def _not_finite(self, what: str, value: float, pairs: list[str]) -> NumericalError:
        named = ", ".join(pairs[:4]) + (" …" if len(pairs) > 4 else "")
        return NumericalError(
            f"the {what} is {value} at step {self.step}, nothing was changed; pairs {named}; "
            "lower --learning-rate or --beta-dpo, or look at those pairs"
        )

    def _finish(self, run_id: str) -> dict:
        config = self.config
        tables = [read_rows(self.output / f"{table}.csv") for table in TABLES]
        summary = {
            "steps": self.step,
            "n_pairs": len(self.data.pairs.train),
            "loss": self.looks.last_metrics.get("loss"),
            "implicit_accuracy": self.looks.last_metrics.get("implicit_accuracy"),
            "validation": self.looks.last_look,
            "beta_mean": None if config.loss == "sft" else config.beta_dpo,
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
