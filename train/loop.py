"""The training loop: from labelled pairs in the store to a folder that diffusers loads."""

import json
import math
import signal
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..store import IntegrityError, NumericalError, PairStore, PrefloopError, UsageError
from ..store.locks import locked
from ..store.models import find_model
from ..store.runs import Run, StopSignal, plain, progress, quiet_libraries, run
from .checkpoint import latest_checkpoint, save_checkpoint
from .config import TrainConfig
from .data import Batch
from .errors import Denoising
from .folder import add_rows, cut_table, refuse_finished
from .objective import SHOWN, pair_losses, shown
from .optimizers import learning_rate, optimizer_for, optimizer_name
from .plots import plot_training
from .policy import Policy, load_unet
from .prepare import prepared, with_reference
from .result import Provenance, beta_sum, write_result
from .samples import Samples
from .validation import COLUMNS as VALIDATION
from .validation import Validation
from .verdicts import read_rows, should_stop, verdicts

METRICS = ("step", *SHOWN, "learning_rate", "grad_norm")
TABLES = ("metrics", "validation")
LOG_EVERY = 10


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
        UsageError: where the folder holds a finished run, a run with other settings, or something else.
        NumericalError: where a loss or gradient is not finite; nothing is written then.
        PrefloopError: where memory runs out.
    """
    output = Path(config.output_dir)
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
        self.model = find_model(config.model, config.revision)
        with self.accelerator.main_process_first():
            self.data, self.scheduler = prepared(config, store, self.model, device)
        self.fingerprint = self.data.pairs.fingerprint()
        self.labelers = {
            name: json.loads(settings)
            for name, settings in store.rows(
                "select labeler, config from labelers where labeler in (select unnest(?))", [list(config.labelers)]
            )
        }
        self.policy = Policy(load_unet(self.model, config.unet_init), config).to(device)
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
        self.denoising = Denoising(self.policy, self.unet, self.scheduler, config, self.accelerator)
        self.validation = Validation(self.data, config)
        self.samples = Samples(self.data, self.policy, self.model, config, self.output)
        self.step = 0
        self.last_metrics: dict[str, float] = {}
        self.last_look: dict[str, Any] = {}
        self.recent: deque[Tensor] = deque(maxlen=LOG_EVERY)  # each (len(METRICS) - 1,)

    def train(self, run_id: str) -> dict:
        config = self.config
        self._restore()
        if config.cache_reference:
            with self.accelerator.main_process_first():
                self.data = with_reference(self.data, self.denoising, self.store, self.model, self.step)
        if config.report_to:
            self.accelerator.init_trackers(config.tracker_project_name, config=plain(asdict(config)))
        self._begin_validation()
        micro_batches = self.data.ahead(self._starts(), config.train_batch_size)
        with progress(config.max_train_steps, "training", initial=self.step) as bar:
            while self.step < config.max_train_steps:
                self.recent.append(self._optimize(micro_batches))
                self.step += 1
                bar.update()
                last = self.step == config.max_train_steps
                if self.step % LOG_EVERY == 0 or last:
                    bar.set_postfix_str(self._log_metrics())
                if self.step % config.validation_steps == 0 or last:
                    last = self._validate() or last
                if config.sample_steps and (self.step % config.sample_steps == 0 or last):
                    self._sample()
                stopping = self._stopping()
                if self.step % config.checkpointing_steps == 0 or last or stopping:
                    self._checkpoint()
                if last:
                    break
                if stopping:
                    self.stop.check(f"step {self.step} of {config.max_train_steps} is in {self.output}")
        micro_batches.close()
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
            METRICS without the step, on the device: reading them would wait for it.
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

    # Looks

    def _begin_validation(self) -> None:
        """Have the reference look at the held-out pairs, once for a run; before the first step the model is its reference."""
        if not len(self.validation) or not self.accelerator.is_main_process:
            return
        if self.step and self.validation.recall_reference(self.output):
            return
        if self.step == 0 or self.policy.has_reference:
            self.validation.ask_reference(self.denoising.of_reference, self.output)
        if self.step == 0:
            self._look()

    def _look(self) -> None:
        rows = self.validation.look(self.denoising.of_model, self.step)
        add_rows(self.output / "validation.csv", VALIDATION, rows)
        self.last_look = rows[0]
        for row in rows if self.config.report_to else ():
            where = "validation" if row["bin"] == "all" else f"validation/bin {row['bin']}"
            self.accelerator.log({f"{where}/{name}": row[name] for name in VALIDATION[4:]}, step=self.step)

    def _validate(self) -> bool:
        """Look at the held-out pairs; whether training ends early because it no longer gets better on them."""
        done = torch.zeros(1, device=self.accelerator.device)
        if self.accelerator.is_main_process and self.validation.reference is not None:
            self._look()
            patience = self.config.early_stopping
            done += float(bool(patience) and should_stop(read_rows(self.output / "validation.csv"), patience))
        return bool(self.accelerator.reduce(done, "sum").item())

    def _sample(self) -> None:
        if self.accelerator.is_main_process:
            self.samples.draw(self.step, self.accelerator.device)
        self.accelerator.wait_for_everyone()

    def _log_metrics(self) -> str:
        """Append the mean of the last steps, over all processes, to metrics.csv; the line for the progress bar."""
        mean = self.accelerator.reduce(torch.stack(list(self.recent)).mean(dim=0), "mean").tolist()
        row = dict(zip(METRICS[1:], mean, strict=True))
        if self.accelerator.is_main_process:
            add_rows(self.output / "metrics.csv", METRICS, [{"step": self.step} | row])
        if self.config.report_to:
            self.accelerator.log({f"train/{name}": value for name, value in row.items()}, step=self.step)
        self.last_metrics = row
        return (
            f"loss {row['loss']:.4f}, implicit accuracy {row['implicit_accuracy']:.3f}, error against the "
            f"reference's: chosen {row['chosen_error_change']:+.5f}, rejected {row['rejected_error_change']:+.5f}"
        )

    def _stopping(self) -> bool:
        """Whether a signal has come to any process: all leave at the same step."""
        if self.accelerator.num_processes == 1:
            return self.stop.requested
        asked = torch.tensor([float(self.stop.requested)], device=self.accelerator.device)
        if not self.accelerator.reduce(asked, "sum").item():
            return False
        self.stop.number = self.stop.number or signal.SIGTERM
        return True

    # Checkpoints

    def _checkpoint(self) -> None:
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return

        def write(folder: Path) -> None:
            state = {name: value.contiguous().cpu() for name, value in self.policy.trainable_state().items()}
            save_file(state, folder / "trainable.safetensors")
            rest: dict[str, Any] = {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
            if self.accelerator.scaler is not None:
                rest["scaler"] = self.accelerator.scaler.state_dict()
            if self.ema is not None:
                rest["ema"] = self.ema.state_dict()
            torch.save(rest, folder / "optimizer.pt")
            self.policy.save_weights(folder, self.data.family)

        about = {"config": self.config.identity(), "pairs": self.fingerprint, "n_pairs": len(self.data.pairs.train)}
        save_checkpoint(self.output, self.step, about, write, self.config.checkpoints_total_limit)

    def _restore(self) -> None:
        found = latest_checkpoint(self.output)
        if found is None:
            if self.accelerator.is_main_process:
                for table in TABLES:
                    (self.output / f"{table}.csv").unlink(missing_ok=True)
            return
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
        self.optimizer.load_state_dict(rest["optimizer"])
        self.schedule.load_state_dict(rest["schedule"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(rest["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(rest["ema"])
        self.step = manifest["step"]
        if self.accelerator.is_main_process:
            for table in TABLES:
                cut_table(self.output / f"{table}.csv", self.step)
            print(f"going on from step {self.step} in {self.output}", file=sys.stderr)
        self.accelerator.wait_for_everyone()

    def _finish(self, run_id: str) -> dict:
        config = self.config
        tables = [read_rows(self.output / f"{table}.csv") for table in TABLES]
        summary = {
            "steps": self.step,
            "n_pairs": len(self.data.pairs.train),
            "loss": self.last_metrics.get("loss"),
            "implicit_accuracy": self.last_metrics.get("implicit_accuracy"),
            "validation": self.last_look,
            "beta_mean": config.beta_dpo,
            "beta_sum": beta_sum(config, self.data),
            "verdicts": [asdict(verdict) for verdict in verdicts(*tables)],
            "output_dir": str(self.output),
        }
        if self.accelerator.is_main_process:
            plot_training(self.output)
            if self.ema is not None:
                self.ema.copy_to(self.policy.parameters())
            where = Provenance(run_id, self.labelers, self.accelerator.num_processes)
            write_result(self.output, config, self.policy, self.model, self.data, where, summary)
        return plain(summary)
