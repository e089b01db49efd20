"""What a finished run leaves in its folder: weights that diffusers loads, and where they came from."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...core.hashing import RESULT_FILE, digests
from ...core.json import plain
from ...models.lineage import lineage
from ...models.model import Model
from ...models.resolve import find_model
from ...models.trained_prompts import write_trained_prompts
from ...store import IntegrityError, PairStore, UsageError
from ...store.runs import versions
from ..config import TrainConfig
from ..data import TrainingData
from ..optimizers import learning_rate, optimizer_name
from ..policy import Policy
from ..run_folder.publish import publish
from ..run_folder.readme import write_readme
from .card import evaluations_of, model_card


@dataclass(frozen=True)
class Provenance:
    """What is told of a result beside its settings."""

    run_id: str
    labelers: dict[str, Any]
    """Those whose pairs were trained on, each with its own settings and the scorers' revisions."""
    n_processes: int


def about(config: TrainConfig, model: Model, data: TrainingData, provenance: Provenance, summary: dict) -> dict:
    """The content of prefloop.json."""
    return plain(
        {
            "base_model": model.root.name,
            "trained_on": lineage(model, Path(config.output_dir)),
            "family": data.family.kind,
            "pipeline_class": data.family.pipeline_class,
            "kind": "lora" if config.lora_rank else "full",
            "output": output_of(config),
            "kohya": config.kohya,
            "objective": config.loss,
            "optimizer": optimizer_name(config, data.family),
            "absolute_learning_rate": learning_rate(config, provenance.n_processes),
            "effective_batch": config.train_batch_size * config.gradient_accumulation_steps * provenance.n_processes,
            "run_id": provenance.run_id,
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
    """beta as the factor of a sum over the latent's values instead of their mean."""
    shape = data.latents.rows(
        "mean", [data.frames[pair.pair_id].key(pair.chosen) for pair in data.pairs.train[:1]]
    ).shape
    return config.beta / math.prod(shape[1:])


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
    with publish(output) as folder:
        if output_of(config) == "pipeline":
            policy.save_pipeline(folder, model)
        elif output_of(config) == "unet":
            policy.whole_unet(model).save_pretrained(folder / "unet")
        else:
            policy.save_weights(folder, data.family)
        if config.kohya:
            policy.save_kohya(folder, data.family, model)
        settle(folder)
        write_trained_prompts(folder, data.trained_prompts(told["steps"] * told["effective_batch"]))
        write_readme(folder, model_card(told, [], model))
        (folder / RESULT_FILE).write_text(json.dumps(told | {"files": digests(folder)}, indent=1))


def settle(folder: Path) -> None:
    """Make files that hold the same equal byte by byte: headers in one order, and no folder of this machine in a config."""
    for path in folder.rglob("*.safetensors"):
        with open(path, "r+b") as file:
            size = int.from_bytes(file.read(8), "little")
            # safetensors writes the metadata in another order each time
            header = json.dumps(json.loads(file.read(size)), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            data = header.encode()
            if len(data) <= size:
                file.seek(8)
                file.write(data.ljust(size))
    for path in folder.rglob("*.json"):
        settings = json.loads(path.read_text())
        if isinstance(settings, dict) and settings.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def write_card(folder: Path, store: PairStore) -> int:
    """Write the README.md of a result anew, with what `eval` has found about it since; the number of evaluations.

    Raises:
        UsageError: where the folder is no finished result, or its README.md is not as it was written.
        IntegrityError: where the result is not as train wrote it.
    """
    path = folder / RESULT_FILE
    if not path.is_file():
        raise UsageError(
            f"{folder} holds no finished result: {RESULT_FILE} is not there; name a folder that train wrote"
        )
    model = find_model(str(folder))
    found = evaluations_of(store, model.model_id)
    try:
        card = model_card(model.trained_with or {}, found, model.trained_on)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"{path} lacks what a card tells: {type(error).__name__} {error}") from error
    write_readme(folder, card)
    return len(found)
