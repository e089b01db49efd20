"""Write a finished run's result: weights that diffusers loads, and prefloop.json, which says where they came from."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.hashing import RESULT_FILE, digests
from ...core.json import plain
from ...models.lineage import lineage
from ...models.model import COMPONENTS, Model
from ...models.names import LORA_FILES
from ...models.trained_prompts import read_trained_prompts, write_trained_prompts
from ...store import PairStore
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
    """Where a result came from, beyond its settings."""

    run_id: str
    labelers: dict[str, Any]
    """Labelers whose pairs were trained on, by name: their settings, with the scorers' revisions."""
    n_processes: int


def result_record(config: TrainConfig, model: Model, data: TrainingData, provenance: Provenance, summary: dict) -> dict:
    """The content of prefloop.json."""
    return plain(
        {
            "base_model": model.root.name,
            "trained_on": lineage(model, Path(config.output_dir)),
            "family": data.family.name,
            "pipeline_class": data.family.pipeline_class,
            "kind": "lora" if config.lora_rank else "full",
            "output": output_of(config),
            "kohya": config.kohya_file is not None,
            "kohya_file": config.kohya_file,
            "objective": config.loss,
            "optimizer": optimizer_name(config, data.family),
            "absolute_learning_rate": learning_rate(config, provenance.n_processes),
            "effective_batch": config.train_batch_size * config.gradient_accumulation_steps * provenance.n_processes,
            "run_id": provenance.run_id,
            "labelers": provenance.labelers,
            "versions": versions(),
            "config": plain(config.resolved()),
        }
        | summary
    )


def output_of(config: TrainConfig) -> str:
    if config.format not in ("auto", "kohya"):
        return config.format
    return "lora" if config.lora_rank else "pipeline"


def beta_sum(config: TrainConfig, data: TrainingData) -> float | None:
    """The beta of a loss that sums over the latent's values instead of averaging them."""
    height, width = data.crop(data.pairs.train[0]).size
    n_values = data.family.latent_channels * (height // data.family.vae_factor) * (width // data.family.vae_factor)
    return None if config.resolved_beta is None else config.resolved_beta / n_values


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
    record = result_record(config, model, data, provenance, summary)
    with publish(output) as folder:
        if output_of(config) == "pipeline":
            policy.save_pipeline(folder, model)
        elif output_of(config) in COMPONENTS:
            policy.whole_component(model).save_pretrained(folder / data.family.component)
        else:
            policy.save_weights(folder)
        if config.kohya_file is not None:
            policy.save_kohya(folder / config.kohya_file, model)
        canonicalize_files(folder)
        write_trained_prompts(folder, data.trained_prompts(record["steps"] * record["effective_batch"]))
        write_readme(folder, model_card(record, [], model))
        (folder / RESULT_FILE).write_text(json.dumps(record | {"files": digests(folder)}, indent=1))


def canonicalize_files(folder: Path) -> None:
    """Make equal results equal byte by byte: sort headers, and remove this machine's folders from configs."""
    for path in folder.rglob("*.safetensors"):
        with open(path, "r+b") as file:
            size = int.from_bytes(file.read(8), "little")
            # safetensors writes the metadata in random order
            header = json.dumps(json.loads(file.read(size)), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            data = header.encode()
            if len(data) <= size:
                file.seek(8)
                file.write(data.ljust(size))
    for path in folder.rglob("*.json"):
        settings = json.loads(path.read_text())
        if isinstance(settings, dict) and settings.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


_OF_THE_END = ("loss", "implicit_accuracy", "validation", "diagnoses", "seconds", "kohya", "kohya_file")
"""What prefloop.json says about the last step of a run and its files, and not about its checkpoints."""


def write_checkpoint_as_result(target: Path, model: Model, store: PairStore) -> None:
    """Write a checkpoint, or a whole result, into another folder as a result with a card.

    Args:
        model: what `find_model` says of the checkpoint or the result.

    Raises:
        UsageError: if somebody else's file has the name of one of the result's.
    """
    source, record = Path(model.source), dict(model.trained_with or {})
    names = record.get("files")
    if names is None:
        record = {key: value for key, value in record.items() if key not in _OF_THE_END}
        names = [name for name in digests(source) if name.startswith(f"{model.kind}/") or name in LORA_FILES]
    base = model.trained_on
    if base is not None:
        record["trained_on"] = lineage(base, target)
    with publish(target) as folder:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
        write_trained_prompts(folder, read_trained_prompts(source) or ())
        evaluations = evaluations_of(store, model.model_id)
        write_readme(folder, model_card(record, evaluations, base))
        (folder / RESULT_FILE).write_text(json.dumps(record | {"files": digests(folder)}, indent=1))
