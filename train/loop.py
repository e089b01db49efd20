"""The training loop: from labelled pairs in the store to a folder that diffusers loads."""

import csv
import json
import math
import shutil
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..store import IntegrityError, NumericalError, PairStore, UsageError
from ..store.locks import locked
from ..store.models import RESULT_FILE, Model, find_model
from ..store.runs import StopSignal, plain, progress, quiet_libraries, run
from . import losses
from .checkpoint import latest_checkpoint, save_checkpoint
from .config import TrainConfig
from .data import Batch, TrainingData, cache_latents, cache_texts
from .denoise import noisy_pair, pair_errors
from .pairs import select_pairs
from .policy import Policy, check_family, load_encoders, load_noise, load_unet

METRICS = (
    "step",
    "loss",
    "implicit_accuracy",
    "chosen_error_change",
    "rejected_error_change",
    "learning_rate",
    "grad_norm",
)
VALIDATION = ("step", "implicit_accuracy", "chosen_error_change", "rejected_error_change", "n_pairs")
LOG_EVERY = 10


@dataclass(frozen=True)
class Errors:
    """What one batch shows of both models; each (B,) float32. The reference's are None under sft."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor | None
    ref_rejected: Tensor | None


def train(config: TrainConfig, store: PairStore, *, resume: bool = False, overwrite: bool = False) -> dict:
    """Tune a model on the labels of a store.

    An interrupted run is continued by the same call. The result lies in `output_dir`: the whole pipeline, or a LoRA;
    `prefloop.json` says what it was made from, `metrics.csv` and `validation.csv` how it went.

    Args:
        resume: go on with a finished run, where max_train_steps has grown.
        overwrite: begin a run anew.

    Returns:
        n_pairs, steps, loss, implicit_accuracy, validation (its last row), output_dir, beta_mean, beta_sum.

    Raises:
        UsageError: where the folder holds a finished run, a run with other settings, or something else.
        NumericalError: where a loss or gradient is not finite; nothing is written then.
    """
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    with locked(output / ".lock", f"the training run {output}"), StopSignal().listening() as stop:
        _refuse_finished(output, config, resume, overwrite)
        with run(store, "train", config) as this:
            this.summary |= _Trainer(config, store, stop).train(str(this.run_id))
    return this.summary


def _refuse_finished(output: Path, config: TrainConfig, resume: bool, overwrite: bool) -> None:
    result = output / RESULT_FILE
    if overwrite:
        for path in output.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif result.exists():
        done = json.loads(result.read_text())
        if not resume:
            raise UsageError(
                f"{output} holds a finished run of {done['steps']} steps; give --resume, --overwrite or another folder"
            )
        if done["steps"] >= config.max_train_steps:
            raise UsageError(
                f"nothing to do: the run in {output} has done {done['steps']} steps; raise --max-train-steps"
            )
    elif any(
        path.name != ".lock" and not path.name.startswith(("checkpoint-", ".", "metrics", "validation"))
        for path in output.iterdir()
    ):
        raise UsageError(f"{output} is not empty and holds no run; name another folder, or give --overwrite")


class _Trainer:
    def __init__(self, config: TrainConfig, store: PairStore, stop: StopSignal) -> None:
        quiet_libraries()
        self.config = config
        self.stop = stop
        self.output = Path(config.output_dir)
        tracker: dict[str, Any] = (
            {"log_with": config.report_to, "project_dir": str(self.output / "logs")} if config.report_to else {}
        )
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=config.cpu, **tracker)
        self.model = find_model(config.model)
        check_family(self.model)
        self.data, self.scheduler = _prepared(config, store, self.model, self.accelerator.device)
        self.fingerprint = self.data.pairs.fingerprint()
        self.labelers = {
            name: json.loads(settings)
            for name, settings in store.rows(
                "select labeler, config from labelers where labeler in (select unnest(?))", [list(config.labels)]
            )
        }
        policy = Policy(load_unet(self.model), config).to(self.accelerator.device)
        self.policy = policy
        optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.adam_weight_decay,
            eps=config.adam_epsilon,
        )
        self.schedule = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        self.unet, self.optimizer = self.accelerator.prepare(policy.unet, optimizer)
        self.step = 0
        self.recent: deque[dict[str, float]] = deque(maxlen=LOG_EVERY)

    def train(self, run_id: str) -> dict:
        config = self.config
        self._restore()
        if config.report_to:
            self.accelerator.init_trackers("prefloop", config=plain(asdict(config)))
        validation: dict[str, float] = {}
        with progress(config.max_train_steps, "training", initial=self.step) as bar:
            while self.step < config.max_train_steps:
                self.recent.append(self._optimize())
                self.step += 1
                bar.update()
                if self.step % LOG_EVERY == 0 or self.step == config.max_train_steps:
                    bar.set_postfix_str(self._log("metrics", METRICS, self._averaged()))
                if self.step % config.validation_steps == 0 or self.step == config.max_train_steps:
                    validation = self._validate()
                last = self.step == config.max_train_steps
                if self.step % config.checkpointing_steps == 0 or last or self.stop.requested:
                    self._checkpoint()
                if not last:
                    self.stop.check(f"step {self.step} of {config.max_train_steps} is in {self.output}")
        self.accelerator.end_training()
        return self._finish(run_id, validation)

    def _optimize(self) -> dict[str, float]:
        """One optimizer step over all micro-batches; raises before the weights change where anything is not finite."""
        config, accelerator = self.config, self.accelerator
        parts, pairs, n = [], [], config.gradient_accumulation_steps
        world, rank = accelerator.num_processes, accelerator.process_index
        for micro in range(n):
            first = ((self.step * n + micro) * world + rank) * config.train_batch_size
            batch = self.data.batch(first, config.train_batch_size)
            pairs += [str(pair.pair_id) for pair in batch.pairs]
            with nullcontext() if micro == n - 1 else accelerator.no_sync(self.unet):
                errors = self._errors(batch)
                loss, shown = self._loss(errors)
                if not torch.isfinite(loss):
                    raise self._not_finite("loss", float(loss), pairs)
                accelerator.backward(loss / n)
            parts.append(shown)
        norm = accelerator.clip_grad_norm_(self.policy.parameters(), config.max_grad_norm)
        norm = float(norm) if norm is not None else math.nan
        if not math.isfinite(norm) and accelerator.scaler is None:  # a scaler skips the step and lowers its scale
            raise self._not_finite("gradient norm", norm, pairs)
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        mean = {name: sum(part[name] for part in parts) / n for name in parts[0]}
        return mean | {"learning_rate": rate, "grad_norm": norm}

    def _not_finite(self, what: str, value: float, pairs: list[str]) -> NumericalError:
        named = ", ".join(pairs[:4]) + (" …" if len(pairs) > 4 else "")
        return NumericalError(
            f"the {what} is {value} at step {self.step}, nothing was changed; pairs {named}; "
            "lower --learning-rate or --beta-dpo, or look at those pairs"
        )

    def _errors(self, batch: Batch) -> Errors:
        device = self.accelerator.device
        chosen, rejected, hidden, noise, timesteps = (
            part.to(device) for part in (batch.chosen, batch.rejected, batch.hidden, batch.noise, batch.timesteps)
        )
        input_noise = None if batch.input_noise is None else batch.input_noise.to(device)
        pair = noisy_pair(self.scheduler, chosen, rejected, hidden, noise, timesteps, input_noise)
        ref_chosen = ref_rejected = None
        # both models run in the same dtype, so that their rounding cancels in the difference
        with self.accelerator.autocast():
            if self.config.loss != "sft":
                with self.policy.reference(self.unet) as reference:
                    ref_chosen, ref_rejected = pair_errors(reference, pair)
            own_chosen, own_rejected = pair_errors(self.unet, pair)
        return Errors(own_chosen, own_rejected, ref_chosen, ref_rejected)

    def _loss(self, errors: Errors) -> tuple[Tensor, dict[str, float]]:
        if errors.ref_chosen is None or errors.ref_rejected is None:
            loss = losses.sft(errors.chosen).mean()
            return loss, {"loss": loss.item(), "implicit_accuracy": math.nan, "chosen_error_change": math.nan, "rejected_error_change": math.nan}  # fmt: skip
        four = (errors.chosen, errors.rejected, errors.ref_chosen, errors.ref_rejected)
        loss = losses.diffusion_dpo(*four, beta=self.config.beta_dpo).mean()
        logits = losses.dpo_logits(*four, beta=self.config.beta_dpo)
        return loss, {
            "loss": loss.item(),
            "implicit_accuracy": losses.implicit_accuracy(logits).item(),
            "chosen_error_change": (errors.chosen - errors.ref_chosen).mean().item(),
            "rejected_error_change": (errors.rejected - errors.ref_rejected).mean().item(),
        }

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Implicit accuracy and errors on the pairs of held-out prompts; empty where there are none or no reference."""
        if not self.data.pairs.validation or self.config.loss == "sft":
            return {}
        rows, counts = [], []
        for batch in self.data.validation(self.config.train_batch_size):
            rows.append(self._loss(self._errors(batch))[1])
            counts.append(len(batch.pairs))
        n = sum(counts)
        mean = {key: sum(row[key] * k for row, k in zip(rows, counts, strict=True)) / n for key in VALIDATION[1:-1]}
        self._log("validation", VALIDATION, mean | {"n_pairs": n})
        return mean | {"n_pairs": n}

    def _averaged(self) -> dict[str, float]:
        return {name: sum(row[name] for row in self.recent) / len(self.recent) for name in METRICS[1:]}

    def _log(self, table: str, columns: tuple[str, ...], row: dict[str, float]) -> str:
        """Append to TABLE.csv; the line for the progress bar."""
        if self.accelerator.is_main_process:
            path = self.output / f"{table}.csv"
            fresh = not path.exists()
            with open(path, "a", newline="") as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                if fresh:
                    writer.writeheader()
                writer.writerow({"step": self.step} | row)
        if self.config.report_to:
            self.accelerator.log({f"{table}/{name}": value for name, value in row.items()}, step=self.step)
        return (
            f"loss {row.get('loss', math.nan):.4f}, implicit accuracy {row['implicit_accuracy']:.3f}, error against the "
            f"reference's: chosen {row['chosen_error_change']:+.5f}, rejected {row['rejected_error_change']:+.5f}"
        )

    # Checkpoints

    def _checkpoint(self) -> None:
        if not self.accelerator.is_main_process:
            return

        def write(folder: Path) -> None:
            state = {name: value.contiguous().cpu() for name, value in self.policy.trainable_state().items()}
            save_file(state, folder / "trainable.safetensors")
            rest = {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
            if self.accelerator.scaler is not None:
                rest["scaler"] = self.accelerator.scaler.state_dict()
            torch.save(rest, folder / "optimizer.pt")
            # a folder that diffusers loads: the U-Net, or the LoRA
            if self.policy.lora:
                self.policy.save(folder, self.model)
            else:
                self.policy.unet.save_pretrained(folder / "unet")

        about = {"config": self.config.identity(), "pairs": self.fingerprint, "n_pairs": len(self.data.pairs.train)}
        save_checkpoint(self.output, self.step, about, write, self.config.checkpoints_total_limit)

    def _restore(self) -> None:
        found = latest_checkpoint(self.output)
        if found is None:
            for table in ("metrics", "validation"):
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
        self.policy.load_trainable_state(load_file(path / "trainable.safetensors", device=str(self.accelerator.device)))
        rest: dict[str, Any] = torch.load(
            path / "optimizer.pt", map_location=self.accelerator.device, weights_only=True
        )
        self.optimizer.load_state_dict(rest["optimizer"])
        self.schedule.load_state_dict(rest["schedule"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(rest["scaler"])
        self.step = manifest["step"]
        for table in ("metrics", "validation"):
            _cut(self.output / f"{table}.csv", self.step)
        print(f"going on from step {self.step} in {self.output}", file=sys.stderr)

    def _finish(self, run_id: str, validation: dict[str, float]) -> dict:
        config, beta = self.config, self.config.beta_dpo
        n_values = math.prod(self.data.latents.rows("mean", [self.data.pairs.train[0].chosen]).shape[1:])
        averaged = self._averaged() if self.recent else {}
        summary = {
            "steps": self.step,
            "n_pairs": len(self.data.pairs.train),
            "loss": averaged.get("loss"),
            "implicit_accuracy": averaged.get("implicit_accuracy"),
            "validation": validation,
            "beta_mean": beta,
            "beta_sum": beta / n_values,
            "output_dir": str(self.output),
        }
        if self.accelerator.is_main_process:
            with _replacing(self.output) as folder:
                self.policy.save(folder, self.model)
                about = {
                    "base_model": config.model if self.model.base is None else self.model.base.name,
                    "base_model_id": str(self.model.model_id),
                    "kind": "lora" if self.policy.lora else "full",
                    "run_id": run_id,
                    "labels": list(config.labels),
                    "labelers": self.labelers,
                    "config": plain(asdict(config)),
                }
                (folder / RESULT_FILE).write_text(json.dumps(plain(about | summary), indent=1))
        return plain(summary)


def _prepared(config: TrainConfig, store: PairStore, model: Model, device: torch.device) -> tuple[TrainingData, Any]:
    """Cached latents and texts, and the noise schedule; the encoders are out of memory when this returns."""
    pairs = select_pairs(store, config)
    scheduler: Any = load_noise(model)
    vae, encode = load_encoders(model, device)
    key = (model.base or model).model_id.hex
    resolution = config.resolution or _own_resolution(model, vae)
    latents, pairs = cache_latents(store, pairs, vae, key, resolution, flip=config.random_flip)
    texts = cache_texts(store, pairs, encode, key)
    return TrainingData(pairs, latents, texts, config, scheduler.config.num_train_timesteps), scheduler


def _own_resolution(model: Model, vae: Any) -> int:
    from diffusers import UNet2DConditionModel

    settings: Any = UNet2DConditionModel.load_config((model.base or model).source, subfolder="unet")
    return settings["sample_size"] * 2 ** (len(vae.config.block_out_channels) - 1)


@contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """A folder whose content is moved into `output` when the block ends well; the file that says it is finished last."""
    folder = output / ".result.tmp"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    for path in sorted(folder.iterdir(), key=lambda path: path.name == RESULT_FILE):
        target = output / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    folder.rmdir()


def _cut(path: Path, step: int) -> None:
    """Drop the rows of a table after a step: they will be made again."""
    if path.exists():
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], *(line for line in lines[1:] if int(line.split(",")[0]) <= step)]) + "\n")
