"""What a finished run leaves in its folder: weights that diffusers loads, and where they came from."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..store import PairStore, UsageError
from ..store.models import RESULT_FILE, Model, find_model
from ..store.runs import plain, versions
from .card import evaluations_of, model_card
from .config import TrainConfig
from .data import TrainingData
from .folder import replacing
from .optimizers import learning_rate, optimizer_name
from .policy import Policy
from .readme import write_readme


@dataclass(frozen=True)
class Provenance:
    """What is told of a result beside its settings."""

    run_id: str
    labelers: dict[str, Any]
    """Each labeler's own settings, with the scorers' revisions."""
    n_processes: int


def about(config: TrainConfig, model: Model, data: TrainingData, provenance: Provenance, summary: dict) -> dict:
    """The content of prefloop.json."""
    return plain(
        {
            "base_model": config.model if model.base is None else model.base.name,
            "base_model_id": str(model.model_id),
            "family": data.family.kind,
            "pipeline_class": data.family.pipeline_class,
            "kind": "lora" if config.lora_rank else "full",
            "output": output_of(config),
            "objective": config.loss,
            "optimizer": optimizer_name(config, data.family),
            "absolute_learning_rate": learning_rate(config, provenance.n_processes),
            "effective_batch": config.train_batch_size * config.gradient_accumulation_steps * provenance.n_processes,
            "run_id": provenance.run_id,
            "labels": list(config.labelers),
            "labelers": provenance.labelers,
            "versions": versions(),
            "config": plain(asdict(config)),
        }
        | summary
    )


def output_of(config: TrainConfig) -> str:
    if config.output != "auto":
        return config.output
    return "lora" if config.lora_rank else "pipeline"


def beta_sum(config: TrainConfig, data: TrainingData) -> float:
    """beta_dpo as the factor of a sum over the latent's values instead of their mean."""
    shape = data.latents.rows(
        "mean", [data.frames[pair.pair_id].key(pair.chosen) for pair in data.pairs.train[:1]]
    ).shape
    return config.beta_dpo / math.prod(shape[1:])


def write_result(
    output: Path,
    config: TrainConfig,
    policy: Policy,
    model: Model,
    data: TrainingData,
    provenance: Provenance,
    summary: dict,
) -> None:
    """Put weights and prefloop.json into the folder, all or nothing."""
    told = about(config, model, data, provenance, summary)
    with replacing(output) as folder:
        if output_of(config) == "pipeline":
            policy.save_pipeline(folder, model, config.vae)
        else:
            policy.save_weights(folder, data.family)
        if config.kohya:
            policy.save_kohya(folder, data.family)
        write_readme(folder, model_card(told, []))
        (folder / RESULT_FILE).write_text(json.dumps(told, indent=1))


def write_card(folder: Path, store: PairStore) -> int:
    """Write the README.md of a result anew, with what `eval` has found about it since; the number of evaluations.

    Raises:
        UsageError: where the folder is no finished result, or its README.md is not as it was written.
    """
    path = folder / RESULT_FILE
    if not path.is_file():
        raise UsageError(
            f"{folder} holds no finished result: {RESULT_FILE} is not there; name a folder that train wrote"
        )
    found = evaluations_of(store, find_model(str(folder)).model_id)
    write_readme(folder, model_card(json.loads(path.read_text()), found))
    return len(found)
