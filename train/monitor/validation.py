"""Validation on the pairs of held-out prompts, always at the same timesteps with the same noise."""

import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.stats import estimate_share, prompt_means
from ..batch import Batch
from ..config import TrainConfig
from ..data import Sample, TrainingData
from ..losses import dpo_logits
from ..objective import Errors
from ..seeds import derived_seed
from ..tensor_file import DamagedError, read_tensors, write_tensors
from .validation_plan import LEAST_STEPS, MAX_PAIRS, N_BINS, ValidationPlan, plan_validation

COLUMNS = (
    "step",
    "bin",
    "timestep_low",
    "timestep_high",
    "n_pairs",
    "n_prompts",
    "chosen_error",
    "ref_chosen_error",
    "rejected_error",
    "ref_rejected_error",
    "margin",
    "implicit_accuracy",
    "implicit_accuracy_low",
    "implicit_accuracy_high",
    "dpo_weight",
)
REFERENCE_FILE = "validation_reference.safetensors"


def validated(n: int, seed: int, n_pairs: int = MAX_PAIRS) -> list[int]:
    """Numbers of those of n held-out pairs that are validated on, in order; those of a smaller `n_pairs` are among them."""
    if n <= n_pairs:
        return list(range(n))
    return sorted(random.Random(seed).sample(range(n), min(n, MAX_PAIRS))[:n_pairs])


class Validation:
    """Held-out pairs, each once in every bin of timesteps; empty if no prompt is held out."""

    def __init__(self, data: TrainingData, config: TrainConfig) -> None:
        self.data, self.config = data, config
        self.bins = data.noise.bins(N_BINS)
        """The first and the last timestep of each."""
        self.reference: tuple[Tensor, Tensor] | None = None  # each (bins * pairs,)
        self.follow(plan_validation(config, len(data.pairs.validation)))

    def follow(self, plan: ValidationPlan) -> None:
        """Validate as often, and on as many pairs."""
        config, held_out = self.config, self.data.pairs.validation
        self.plan = plan
        self.pairs = list(held_out.select(validated(len(held_out), config.seed, plan.n_pairs)))
        self.draws = []
        for number, (first, _) in enumerate(self.bins):
            for pair in self.pairs:
                seed = derived_seed(config.seed, "validation", pair.pair_id, first)
                timestep = self.data.noise.timestep_in(number, N_BINS, seed)
                self.draws.append(Sample(pair, seed, quantile=0.5, timestep=timestep))

    def __len__(self) -> int:
        return len(self.pairs)

    def take_part(self, errors_of: Callable[[list[Batch]], Errors]) -> None:
        """Run the passes in a process that does not need the errors: for a model that runs only in all processes at once."""
        self._errors(errors_of)

    def compute_reference(self, errors_of: Callable[[list[Batch]], Errors], folder: Path) -> None:
        """Compute the reference's errors, once per run, and keep them in its folder."""
        self.reference = self._errors(errors_of)
        metadata = {"seed": str(self.config.seed), "draws": self._draws_hash(), "steps": str(self.plan.steps)}
        write_tensors(folder / REFERENCE_FILE, dict(zip(("chosen", "rejected"), self.reference, strict=True)), metadata)

    def load_reference(self, folder: Path) -> bool:
        """Load the errors that an earlier part of the run kept; whether they are intact and belong to these pairs.

        The run goes on with as many pairs, and as often, unless the settings say how often.
        """
        path = folder / REFERENCE_FILE
        try:
            kept, metadata = read_tensors(path)
        except FileNotFoundError:
            return False
        except DamagedError:
            print(f"{path} is damaged, or has no checksum; computing it again", file=sys.stderr)
            return False
        steps = metadata.get("steps", "")
        begun = ValidationPlan(int(steps) if steps.isdigit() else LEAST_STEPS, len(kept["chosen"]) // N_BINS)
        self.follow(replace(begun, steps=self.config.validation_steps or begun.steps))
        if metadata.get("draws") != self._draws_hash():
            self.follow(plan_validation(self.config, len(self.data.pairs.validation)))
            return False
        self.reference = (kept["chosen"], kept["rejected"])
        return True

    def _draws_hash(self) -> str:
        return str(derived_seed(json.dumps([[str(d.pair.pair_id), str(d.pair.chosen), d.seed] for d in self.draws])))

    def _errors(self, errors_of: Callable[[list[Batch]], Errors]) -> tuple[Tensor, Tensor]:
        chosen, rejected, size = (
            torch.empty(len(self.draws)),
            torch.empty(len(self.draws)),
            self.config.train_batch_size,
        )
        by_frame: dict[tuple[int, int], list[int]] = {}
        for at, draw in enumerate(self.draws):
            frame = self.data.crop(draw.pair)
            by_frame.setdefault((frame.height, frame.width), []).append(at)
        for places in by_frame.values():
            for start in range(0, len(places), size):
                some = places[start : start + size]
                errors = errors_of(self.data.sample_batch([self.draws[at] for at in some]))
                chosen[some], rejected[some] = errors.chosen.float().cpu(), errors.rejected.float().cpu()
        return chosen, rejected

    def run(self, errors_of: Callable[[list[Batch]], Errors], step: int) -> list[dict[str, Any]]:
        """A row for all timesteps and one for each bin, by COLUMNS; the reference's errors must be there."""
        return self._rows(self._errors(errors_of), step)

    def run_as_reference(self, step: int) -> list[dict[str, Any]]:
        """The rows of a policy that is its reference still."""
        assert self.reference is not None
        return self._rows(self.reference, step)

    def _rows(self, policy_errors: tuple[Tensor, Tensor], step: int) -> list[dict[str, Any]]:
        assert self.reference is not None
        errors = torch.stack([*policy_errors, *self.reference]).double().numpy()  # (4, bins * pairs)
        by_bin = errors.reshape(4, len(self.bins), len(self.pairs))
        rows = [self._row("all", (self.bins[0][0], self.bins[-1][1]), errors)]
        rows += [self._row(k, timesteps, by_bin[:, k]) for k, timesteps in enumerate(self.bins)]
        return [{"step": step} | row for row in rows]

    def _row(self, name: str | int, timesteps: tuple[float, float], errors: np.ndarray) -> dict[str, Any]:
        """Means over prompts, each of which weighs the same; an interval that does not exist is None."""
        logits = dpo_logits(*torch.from_numpy(errors).float(), beta=self.config.resolved_beta or 1.0)
        correct = (logits > 0).float() + 0.5 * (logits == 0).float()
        columns = np.stack([*errors, logits.numpy(), correct.numpy(), torch.sigmoid(-logits).numpy()], axis=1)
        prompts = [str(pair.prompt_id) for pair in self.pairs] * (len(logits) // len(self.pairs))
        means = prompt_means(columns, prompts)
        accuracy = estimate_share(means[:, 5])
        chosen, rejected, ref_chosen, ref_rejected, margin, _, dpo_weight = means.mean(axis=0).tolist()
        return {
            "bin": name,
            "timestep_low": timesteps[0],
            "timestep_high": timesteps[1],
            "n_pairs": len(self.pairs),
            "n_prompts": len(means),
            "chosen_error": chosen,
            "ref_chosen_error": ref_chosen,
            "rejected_error": rejected,
            "ref_rejected_error": ref_rejected,
            "margin": margin,
            "implicit_accuracy": accuracy.value,
            "implicit_accuracy_low": accuracy.low if accuracy.has_interval else None,
            "implicit_accuracy_high": accuracy.high if accuracy.has_interval else None,
            "dpo_weight": dpo_weight,
        }
