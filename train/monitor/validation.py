"""Monitor at the pairs of held-out prompts, always at the same timesteps with the same noise."""

import json
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import TrainConfig
from ..data import Batch, Sample, TrainingData, derived_seed
from ..losses import dpo_logits
from ..objective import Errors
from ..tensor_file import DamagedError, read_tensors, write_tensors

COLUMNS = (
    "step",
    "bin",
    "timestep_low",
    "timestep_high",
    "n_pairs",
    "chosen_error",
    "ref_chosen_error",
    "rejected_error",
    "ref_rejected_error",
    "margin",
    "implicit_accuracy",
    "low",
    "high",
    "dpo_weight",
)
N_BINS = 5
MOST_PAIRS = 256  # pairs looked at; more narrow the interval by little and cost time
LEAST_GROUPS = 10  # prompts: with fewer the bootstrap has too few different draws
REFERENCE_FILE = "validation_reference.safetensors"


class Validation:
    """Held-out pairs, each once in every bin of timesteps; empty where no prompt is held out."""

    def __init__(self, data: TrainingData, config: TrainConfig) -> None:
        self.data, self.config = data, config
        held_out = data.pairs.validation
        if len(held_out) > MOST_PAIRS:
            held_out = held_out.select(sorted(random.Random(config.seed).sample(range(len(held_out)), MOST_PAIRS)))
        pairs = list(held_out)
        self.pairs = pairs
        allowed = data.family.noise.timesteps
        n = min(N_BINS, len(allowed))
        self.bins = [allowed[len(allowed) * k // n : len(allowed) * (k + 1) // n] for k in range(n)]
        self.draws = []
        for inside in self.bins:
            for pair in pairs:
                seed = derived_seed(config.seed, "validation", pair.pair_id, inside[0])
                self.draws.append(Sample(pair, seed, timestep=inside[seed % len(inside)]))
        self.reference: tuple[Tensor, Tensor] | None = None  # each (bins * pairs,)

    def __len__(self) -> int:
        return len(self.pairs)

    def ask_reference(self, errors_of: Callable[[list[Batch]], Errors], folder: Path) -> None:
        """Compute the reference's errors, once for a run, and keep them beside it."""
        self.reference = self._errors(errors_of)
        about = {"seed": str(self.config.seed), "draws": self._name()}
        write_tensors(folder / REFERENCE_FILE, dict(zip(("chosen", "rejected"), self.reference, strict=True)), about)

    def recall_reference(self, folder: Path) -> bool:
        """Take the errors an earlier part of the run kept; whether they are whole and of these pairs."""
        path = folder / REFERENCE_FILE
        try:
            kept, about = read_tensors(path)
        except FileNotFoundError:
            return False
        except DamagedError:
            print(f"{path} is damaged, or without a checksum; made again", file=sys.stderr)
            return False
        if about.get("draws") != self._name():
            return False
        self.reference = (kept["chosen"], kept["rejected"])
        return True

    def _name(self) -> str:
        return str(derived_seed(json.dumps([[str(d.pair.pair_id), str(d.pair.chosen), d.seed] for d in self.draws])))

    def _errors(self, errors_of: Callable[[list[Batch]], Errors]) -> tuple[Tensor, Tensor]:
        chosen, rejected, size = (
            torch.empty(len(self.draws)),
            torch.empty(len(self.draws)),
            self.config.train_batch_size,
        )
        by_frame: dict[tuple[int, int], list[int]] = {}
        for at, draw in enumerate(self.draws):
            frame = self.data.crops[draw.pair.pair_id]
            by_frame.setdefault((frame.height, frame.width), []).append(at)
        for places in by_frame.values():
            for start in range(0, len(places), size):
                some = places[start : start + size]
                errors = errors_of(self.data.sample_batch([self.draws[at] for at in some]))
                chosen[some], rejected[some] = errors.chosen.float().cpu(), errors.rejected.float().cpu()
        return chosen, rejected

    def look(self, errors_of: Callable[[list[Batch]], Errors], step: int) -> list[dict[str, Any]]:
        """A row for all timesteps and one for each bin, by COLUMNS; the reference must have been asked."""
        assert self.reference is not None
        four = torch.stack([*self._errors(errors_of), *self.reference]).double().numpy()  # (4, bins * pairs)
        of_bin = four.reshape(4, len(self.bins), len(self.pairs))
        rows = [self._row("all", (self.bins[0][0], self.bins[-1][-1]), four)]
        rows += [self._row(k, (inside[0], inside[-1]), of_bin[:, k]) for k, inside in enumerate(self.bins)]
        return [{"step": step} | row for row in rows]

    def _row(self, name: str | int, timesteps: tuple[int, int], four: np.ndarray) -> dict[str, Any]:
        logits = dpo_logits(*torch.from_numpy(four).float(), beta=self.config.resolved_beta or 1.0)
        right = ((logits > 0).float() + 0.5 * (logits == 0).float()).numpy()
        prompts = [pair.prompt_id for pair in self.pairs] * (len(right) // len(self.pairs))
        low, high = interval(right, prompts, self.config.seed)
        chosen, rejected, ref_chosen, ref_rejected = four.mean(axis=1).tolist()
        return {
            "bin": name,
            "timestep_low": timesteps[0],
            "timestep_high": timesteps[1],
            "n_pairs": len(self.pairs),
            "chosen_error": chosen,
            "ref_chosen_error": ref_chosen,
            "rejected_error": rejected,
            "ref_rejected_error": ref_rejected,
            "margin": logits.mean().item(),
            "implicit_accuracy": float(right.mean()),
            "low": low,
            "high": high,
            "dpo_weight": torch.sigmoid(-logits).mean().item(),
        }


def interval(values: np.ndarray, groups: list, seed: int, n_resamples: int = 1000) -> tuple[float, float]:
    """95 % interval of the mean of values from 0 to 1: the pairs of a prompt stand or fall together.

    The percentile bootstrap with whole groups drawn; of fewer than LEAST_GROUPS, or where all draws agree, Wilson's score
    interval as if each group were one trial: the bootstrap would be too narrow, down to no width.
    """
    _, of = np.unique([str(group) for group in groups], return_inverse=True)
    sums, counts = np.bincount(of, values), np.bincount(of)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(n_resamples, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    if len(sums) < LEAST_GROUPS or not low < high:
        return _wilson(float(np.mean(values)), len(sums))
    return float(low), float(high)


def _wilson(share: float, n: int) -> tuple[float, float]:
    z = 1.959964
    middle, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max((middle - half) / (1 + z**2 / n), 0.0), min((middle + half) / (1 + z**2 / n), 1.0)
