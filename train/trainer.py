"""The training loop: steps over labelled pairs, with monitoring and checkpoints, and the result."""

import json
import math
import signal
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..core.errors import Interrupted
from ..core.json import plain
from ..core.progress import progress, quiet_libraries
from ..core.signals import StopSignal
from ..models.loading import load_component
from ..models.model import Model
from ..models.parts import with_parts
from ..models.resolve import find_model
from ..store import NumericalError, PairStore
from .batch import Batch
from .config import TrainConfig
from .data import TrainingData
from .export.result import Provenance, beta_sum, write_result
from .feed import Feed
from .monitor.beta_probe import KEY as BETA_PROBE
from .monitor.beta_probe import beta_for_dpo_weight
from .monitor.diagnose import diagnose
from .monitor.monitor import Monitor
from .monitor.plots import plot_training
from .monitor.tables import read_rows
from .objective import batch_metrics, pair_losses
from .optimizers import learning_rate, optimizer_for, optimizer_name
from .pair_denoiser import PairDenoiser
from .policy import Policy
from .prepare import data_for_run, with_reference_errors
from .ranks import Ranks
from .run_folder.saved_pairs import Selection
from .state import TABLES, State
from .transfer import to_device

LOG_EVERY = 10


class Trainer:
    """One run: everything it needs, its loop, and its result.

    Args:
        selection: what `select_for_run` gives for the settings, if it was called already.
        overwrite: whether the run replaces another, for the message of an interruption.
    """

    def __init__(
        self,
        config: TrainConfig,
        store: PairStore,
        stop: StopSignal,
        accelerator: Accelerator | None = None,
        model: Model | None = None,
        overwrite: bool = False,
        selection: Selection | None = None,
    ) -> None:
        quiet_libraries()
        self.overwrite = overwrite
        self.config, self.store, self.stop = config, store, stop
        self.output = Path(config.output_dir)
        if accelerator is None:
            AcceleratorState._reset_state()  # otherwise the precision of the process's previous run would stay
            accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=config.on_cpu)
        self.accelerator = accelerator
        self.ranks = Ranks.of(self.accelerator)
        self.main = self.ranks.is_main
        if config.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        device = self.accelerator.device
        self.model = model or with_parts(find_model(config.model, config.revision), config.init_from, config.vae)
        data = data_for_run(config, store, self.model, device, stop, selection, self.ranks)
        self.feed = Feed(data, config, self.ranks, pin=device.type == "cuda")
        self.labelers = {
            name: json.loads(settings)
            for name, settings in store.rows(
                "select labeler, config from labelers where labeler in (select unnest(?)) order by labeler",
                [self.data.pairs.labelers()],
            )
        }
        reference = None if config.reference is None else find_model(config.reference)
        self.policy = Policy(
            load_component(self.model),
            config,
            self.data.family,
            None if reference is None else load_component(reference),
            device,
        ).to(device)
        if config.kohya_file:
            self.policy.refuse_nameless(self.model)
        if self.main:
            print(self.policy.description(), file=sys.stderr)
        self.rate = learning_rate(config, self.accelerator.num_processes)
        optimizer = optimizer_for(config, self.data.family, self.policy.parameters(), self.rate)
        self.clips = optimizer_name(config, self.data.family) != "adafactor"
        self.lr_scheduler = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        if self.policy.sharded:  # accelerate would have every process keep all weights
            self.component, self.optimizer = self.policy.component, self.accelerator.prepare(optimizer)
        else:
            self.component, self.optimizer = self.accelerator.prepare(self.policy.component, optimizer)
        self.ema = None
        if config.ema_decay is not None:
            foreach = not self.policy.sharded  # torch copies no lists of split weights
            self.ema = EMAModel(self.policy.parameters(), decay=config.ema_decay, foreach=foreach)
        self.recent: deque[Tensor] = deque(maxlen=LOG_EVERY)
        """Metrics of the last steps, as `step` returns them."""
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
            None if reference is None else reference.model_id,
        )
        self.denoiser = PairDenoiser(self.policy, self.component, config, self.accelerator)
        self.monitor = Monitor(config, self.data, self.policy, self.denoiser, self.model, self.accelerator, stop)
        self.global_step = 0
        self.ranks.check(stop, "nothing was trained yet")

    @property
    def data(self) -> TrainingData:
        return self.feed.data

    def train(self, run_id: str) -> dict:
        """All steps from the newest checkpoint on, then the result; returns its summary."""
        config = self.config
        self.global_step = saved = self.ranks.together(self.state.restore)
        ended = self.monitor.stopped_at(self.global_step)
        if not ended:
            self.feed.encode_from(self.global_step)
        if config.reference_draws and not ended:
            self.feed.data = with_reference_errors(
                self.data, self.denoiser, self.store, self.model, self.global_step, self.stop, self.ranks
            )
        self.monitor.begin(self.global_step)
        if 0 < self.global_step == config.max_train_steps:
            self.monitor.catch_up(self.global_step, self.recent)
        with (
            self.state.writer.finishing(),
            closing(self.feed.micro_batches(self.global_step)) as micro_batches,
            progress(config.max_train_steps, "training", initial=self.global_step)
            if self.main
            else nullcontext() as bar,
        ):
            while self.global_step < config.max_train_steps and not ended:
                try:
                    self.feed.encode_from(self.global_step, show=False)
                except Interrupted as error:
                    if saved < self.global_step:
                        self.state.save(self.global_step)
                    raise self.ranks.said_once(self._interrupted(error.exit_code - 128)) from error
                self.recent.append(self.step(micro_batches))
                self.state.writer.check()
                self.global_step += 1
                if bar is not None:
                    bar.update()
                last = self.global_step == config.max_train_steps
                if self.global_step % LOG_EVERY == 0 or last:
                    line = self.monitor.log(self.global_step, self.recent)
                    if bar is not None:
                        bar.set_postfix_str(line)
                if self.global_step % self.monitor.validation.plan.steps == 0 or last:
                    last = self.monitor.validate(self.global_step) or last
                if config.sample_steps and (self.global_step % config.sample_steps == 0 or last):
                    self.monitor.sample(self.global_step)
                stopping = self.monitor.any_process(self.stop.requested)
                if self.global_step % config.checkpointing_steps == 0 or last or stopping:
                    self.state.begin_save(self.global_step)
                    saved = self.global_step
                if last or stopping:
                    self.ranks.together(self.state.writer.wait)
                if last:
                    break
                if stopping:
                    raise self._interrupted(self.stop.number or signal.SIGTERM)  # another process may have received it
        policy = self.trained_policy()
        self.accelerator.end_training()
        return self.finish(run_id, policy)

    def _interrupted(self, number: int) -> Interrupted:
        command = "the same command without --overwrite" if self.overwrite else "the same command"
        return Interrupted(
            f"interrupted: step {self.global_step} of {self.config.max_train_steps} is in {self.output}; "
            f"{command} resumes from there",
            number,
        )

    def step(self, micro_batches: Iterator[list[Batch]] | None = None) -> Tensor:
        """One optimizer step over all micro-batches; raises before the weights change if the loss or gradient is not finite.

        Returns:
            monitor.METRICS without the step, on the device: reading them would wait for it.
        """
        config, accelerator, n = self.config, self.accelerator, self.config.gradient_accumulation_steps
        micro_batches = micro_batches or self.feed.micro_batches(self.global_step)
        metrics, pair_ids = [], []
        for micro in range(n):
            batches = next(micro_batches)
            pairs = [pair for batch in batches for pair in batch.pairs]
            pair_ids += [str(pair.pair_id) for pair in pairs]
            # split gradients are summed each time: kept until the last, they would be whole on every device
            with nullcontext() if micro == n - 1 or self.policy.sharded else accelerator.no_sync(self.component):
                errors = self.denoiser.errors(batches)
                loss = pair_losses(errors, pairs, config)
                accelerator.backward(loss.mean() / n)
            metrics.append(batch_metrics(errors, loss, config))
        norm = self.clip_gradients()
        mean = torch.stack(metrics).mean(dim=0)
        rate = self.lr_scheduler.get_last_lr()[0]
        row = torch.cat([mean, to_device(torch.tensor([rate, 0.0]), mean.device)])
        row[-1] = norm
        finite = torch.isfinite(torch.stack([mean[0], norm])).tolist()  # the only wait of a step
        # a gradient that overflows in half precision is left to the scaler: it skips the step and lowers its scale
        if not finite[0] or not (finite[1] or accelerator.scaler is not None):
            self.optimizer.zero_grad(set_to_none=True)
            raise self._not_finite(
                "gradient norm" if finite[0] else "loss", float(row[-1] if finite[0] else mean[0]), pair_ids
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.lr_scheduler.step()
        if self.ema is not None:
            self.ema.step(self.policy.parameters())
        return row

    def clip_gradients(self) -> Tensor:
        """Clip the gradient, unless Adafactor does it by its own rule; returns its norm before clipping."""
        max_norm = self.config.max_grad_norm if self.clips else math.inf
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), max_norm)
        assert norm is not None
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).detach().float()

    def _not_finite(self, quantity: str, value: float, pair_ids: list[str]) -> NumericalError:
        listed = ", ".join(pair_ids[:4]) + (" …" if len(pair_ids) > 4 else "")
        return NumericalError(
            f"the {quantity} is {value} at step {self.global_step}, and nothing was changed; pairs {listed}; "
            "lower --learning-rate or --beta, or look at those pairs"
        )

    def trained_policy(self) -> Policy:
        """What is written as the result: the policy, or its average. All processes must call this together."""
        if self.ema is not None:
            self.ema.copy_to(self.policy.parameters())
        return self.policy.gathered(self.main)

    def finish(self, run_id: str, policy: Policy | None = None) -> dict:
        """Write the result; returns the summary of the run.

        Args:
            policy: what `trained_policy` returned, if it was called already.
        """
        config = self.config
        policy = policy or self.trained_policy()
        tables = [read_rows(self.output / f"{table}.csv") for table in TABLES]
        summary = {
            "steps": self.global_step,
            "n_pairs": len(self.data.pairs.train),
            "loss": self.monitor.last_metrics.get("loss"),
            "implicit_accuracy": self.monitor.last_metrics.get("implicit_accuracy"),
            "validation": self.monitor.last_validation,
            "beta_mean": config.resolved_beta,
            "beta_sum": beta_sum(config, self.data),
            BETA_PROBE: beta_for_dpo_weight(tables[0], config),
            "diagnoses": [asdict(diagnosis) for diagnosis in diagnose(*tables, config=config)],
            "output_dir": str(self.output),
            "kohya_file": config.kohya_file,
        }
        if self.accelerator.is_main_process:
            plot_training(self.output, config)
            provenance = Provenance(run_id, self.labelers, self.accelerator.num_processes)
            write_result(self.output, config, policy, self.model, self.data, provenance, summary)
        return plain(summary)
