"""Rules over three scorers of the built-in world, one of them in a large unit, measured against its oracle.

    OMP_NUM_THREADS=1 python -m prefloop.bench.mixing

Generates images of the built-in world, scores them, fits temperatures on the oracle's choices for a third of the prompts, and prints
for each rule how many pairs of the other prompts it decides, and how often as the oracle does.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from prefloop.core.stats import estimate_share, estimate_text, prompt_means
from prefloop.generate import GenerateConfig
from prefloop.generate.stage import generate
from prefloop.relabel import RelabelConfig
from prefloop.relabel.scorers.registry import load_scorer
from prefloop.relabel.stage import relabel
from prefloop.shapes.oracle import check
from prefloop.store import PairStore, load_image

SCORERS = ("pickscore", "hps", "prefloop.bench.mixing:Unbounded")
PERSON = "human:oracle"
_PAIRS = """
    select p.pair_id, q.prompt, p.image_a, fa.path, p.image_b, fb.path from pairs p join prompts q using (prompt_id)
    join image_files fa on fa.image_id = p.image_a join image_files fb on fb.image_id = p.image_b order by p.pair_id
"""
_LABELS = "select pair_id, choice from current_labels where labeler = ?"


class Unbounded:
    """The built-in world's aesthetics, which is blind to prompts, times 10: as a reward model whose scores have no bound."""

    name, revision, needs_prompt = "unbounded", "1", False

    def __init__(self) -> None:
        self._scorer = load_scorer("aesthetics", "shapes")

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> np.ndarray:
        return 10 * np.asarray(self._scorer.score(prompts, images))


def oracle_choices(store: PairStore) -> dict[Any, tuple[str, str]]:
    """Prompt and choice of each pair: the image that satisfies more parts of the prompt; a tie if both satisfy as many."""
    parts: dict[tuple[str, Any], int] = {}
    choices = {}
    for pair, prompt, image_a, path_a, image_b, path_b in store.rows(_PAIRS):
        for image, path in ((image_a, path_a), (image_b, path_b)):
            if (prompt, image) not in parts:
                parts[prompt, image] = sum(check(prompt, load_image(store.path / path)).values())
        difference = parts[prompt, image_a] - parts[prompt, image_b]
        choices[pair] = prompt, "a" if difference > 0 else "b" if difference < 0 else "tie"
    return choices


def measure(store: PairStore, choices: dict[Any, tuple[str, str]], fitted: set[str], config: RelabelConfig) -> str:
    labeler = relabel(config, store)["labeler"]
    labels = dict(store.rows(_LABELS, [labeler]))
    measured = [pair for pair, (prompt, _) in choices.items() if prompt not in fitted]
    decided = [pair for pair in measured if labels[pair] in ("a", "b") and choices[pair][1] != "tie"]
    prompts = np.array([choices[pair][0] for pair in decided])
    right = np.array([labels[pair] == choices[pair][1] for pair in decided], np.float64)
    _, numbers = np.unique(prompts, return_inverse=True)
    share = np.mean([labels[pair] in ("a", "b") for pair in measured])
    means = prompt_means(right[:, None], numbers)[:, 0]
    return f"{share:6.1%} decided, {estimate_text(estimate_share(means), len(means))} of {len(decided)} as the oracle"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=200)
    n_prompts = parser.parse_args().prompts
    with tempfile.TemporaryDirectory() as folder:
        store = PairStore.create(Path(folder) / "store")
        generate(GenerateConfig(limit=n_prompts, pairing="all"), store)
        choices = oracle_choices(store)
        fitted = set(sorted({prompt for prompt, _ in choices.values()})[::3])
        store.append("labelers", [{"labeler": PERSON, "kind": "human", "config": "{}"}])
        rows = [
            {"pair_id": pair, "labeler": PERSON, "revision": 0, "choice": choice}
            for pair, (prompt, choice) in choices.items()
            if prompt in fitted
        ]
        store.append("labels", rows)
        store.ingest()
        base = RelabelConfig(scorers=SCORERS, checkpoints={"": "shapes"}, rule="majority")
        runs = {name: replace(base, scorers=(name,), rule="single") for name in SCORERS}
        runs |= {rule: replace(base, rule=rule) for rule in ("mean-rank", "majority", "unanimous", "pareto")}
        runs["weighted"] = replace(base, rule="weighted")
        runs["weighted, fitted"] = replace(base, rule="weighted", fit_temperature=PERSON)
        for name, config in runs.items():
            print(f"{name:<18}", measure(store, choices, fitted, replace(config, labeler=name)))
        print(
            relabel(replace(base, rule="weighted", fit_temperature=PERSON, labeler="weighted, fitted"), store)[
                "temperatures"
            ]
        )


if __name__ == "__main__":
    main()
