"""The model card (README.md) of a result: what it is, how to load it, how it was trained, its win rates."""

import json
import re
from pathlib import Path
from typing import Literal
from uuid import UUID

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ...core.hub import HUB_ID
from ...core.stats import no_interval
from ...core.text import percent
from ...models.families import PIPELINES, family_of_class
from ...models.model import COMPONENTS, TITLES, Model
from ...models.names import LORA_FILE
from ...store.pairstore import PairStore
from ...store.query import visible
from ..config import KOHYA_FILE
from ..methods import METHODS
from .snippet import snippet

Output = Literal["pipeline", "unet", "transformer", "lora", "kohya"]
_DESCRIPTIONS = {
    "pipeline": "A text-to-image pipeline",
    "unet": "The U-Net of a text-to-image pipeline",
    "transformer": "The transformer of a text-to-image pipeline",
    "lora": "A LoRA for a text-to-image pipeline, in {layout}'s layout",
    "kohya": "A LoRA for the U-Net of a text-to-image pipeline, in the layout of kohya's sd-scripts",
}
_TAGS = {"dpo": "diffusion-dpo"}


def evaluations_of(store: PairStore, model_id: UUID) -> list[dict]:
    """What finished runs of `eval` found about a model, oldest first: as `evaluate` returns them, the last of each evaluation,
    one for each model that it was compared with as the tuned one."""
    query = """
        select summary from runs
        where kind = 'eval' and status = 'done' and contains(summary::varchar, ?)
        order by started, run_id"""
    found: dict[object, dict] = {}
    for number, (summary,) in enumerate(store.rows(query, [str(model_id)])):
        result = json.loads(summary)
        for compared in (result, *result.get("other_comparisons", [])):
            if compared.get("model_id") == str(model_id):
                key = (result.get("evaluation_id") or number, compared.get("base_model_id"))
                found.pop(key, None)
                found[key] = _with_todays_names(result | {"other_comparisons": [], "ranks": {}} | compared)
    return list(found.values())


def _with_todays_names(result: dict) -> dict:
    """A result of `evaluate`, which version 0.1 stored with other names: `against`, `low`, `high`."""
    scorers = {
        name: {{"low": "win_rate_low", "high": "win_rate_high"}.get(key, key): value for key, value in row.items()}
        for name, row in result.get("scorers", {}).items()
    }
    return {"baseline": result.get("against")} | result | {"scorers": scorers}


def model_card(record: dict, evaluations: list[dict], trained_on: Model | None = None, best: Path | None = None) -> str:
    """The text of README.md.

    Args:
        record: what `train` writes to prefloop.json. `pipeline_class` is the class of the pipeline, `objective` the name of the
            loss, `output` one of pipeline, unet, transformer, lora, kohya.
        evaluations: results of `evaluate` on this model.
        trained_on: the model it was trained on; if None, `base_model` of `record`.
        best: where a better checkpoint of the run is, if a sweep found one.
    """
    if record["pipeline_class"] not in PIPELINES:
        raise ValueError(f"unknown pipeline class {record['pipeline_class']}; cards exist for {', '.join(PIPELINES)}")
    lora = record["output"] in ("lora", "kohya")
    objective, base = record["objective"], record["base_model"]
    on_hub = _is_hub_id(base)
    tags = ["text-to-image", _TAGS.get(objective, objective), "prefloop"] + ["lora"] * lora
    front = ModelCardData(
        base_model=base if on_hub else None,
        base_model_relation=("adapter" if lora else "finetune") if on_hub else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=tags,
    )
    method = _method(objective)
    layout = "diffusers" if family_of_class(record["pipeline_class"]).lora_loader else "peft"
    parts = [
        f"---\n{front.to_yaml()}\n---",
        "# A model fine-tuned on preferences",
        f"{_DESCRIPTIONS[record['output']].format(layout=layout)}: {_code(base)}, fine-tuned on {record['n_pairs']} preference pairs with {method}, "
        "using prefloop.",
        "## Usage",
        f"```python\n{snippet(record, trained_on)}\n```",
    ]
    if (needs := _requirements(record, trained_on)) is not None:
        parts.append(needs)
    if record["output"] == "kohya":
        parts.append(f"`{LORA_FILE}` also works in programs that read kohya's layout, such as ComfyUI.")
    elif record.get("kohya"):
        file = _code(record.get("kohya_file") or KOHYA_FILE)
        parts.append(
            f"In ComfyUI put {file} into `models/loras`, in AUTOMATIC1111's web UI into `models/Lora`; use it at strength 1 with "
            "the base model above. It has no trigger words."
        )
    parts += ["## Training", "\n".join(f"- {line}" for line in _provenance(record, trained_on))]
    if best is not None:
        parts.append(
            f"An evaluation of all checkpoints found an earlier one better: {_code(best.name)} in this folder."
        )
    if evaluations:
        parts += ["## Win rates", *(_evaluation(evaluation) for evaluation in evaluations)]
    if any(row["in_sample"] for evaluation in evaluations for row in evaluation["scorers"].values()):
        parts.append(
            "A scorer marked in-sample made the labels that the model was trained on, so its win rate is not independent "
            "evidence."
        )
    return "\n\n".join(parts) + "\n"


def _method(objective: str) -> str:
    """The loss with a link to its paper."""
    method = METHODS.get(objective)
    return (
        objective
        if method is None
        else f"{method.title} ([arXiv {method.arxiv}](https://arxiv.org/abs/{method.arxiv}))"
    )


def _requirements(record: dict, trained_on: Model | None) -> str | None:
    """The files that a result needs in addition to the pipeline it is based on."""
    if trained_on is None or record["output"] == "pipeline":
        return None
    composition = trained_on.composition
    whole = record["output"] in COMPONENTS
    loras = () if whole else composition.loras
    component = None if whole else composition.component
    parts = [
        f"the {name} {_code(part.source)}"
        for name, part in ((_component_title(record), component), ("VAE", composition.vae))
        if part is not None
    ]
    parts += [f"the LoRA {_code(folder)}" for folder in loras]
    if not parts:
        return None
    text = f"It also needs {', '.join(parts)}, loaded as above: alone it is a different model."
    if record.get("kohya"):
        contents = f"combines the {len(loras) + 1} LoRAs" if loras else "is the same LoRA"
        target = (
            f"the {_component_title(record)} {_code(component.source)}"
            if component is not None
            else _code(composition.root.name)
        )
        text += f" {_code(record.get('kohya_file') or KOHYA_FILE)} {contents}, for {target}."
    return f"{text} `prefloop train --format pipeline` writes a result that needs nothing else."


def _component_title(record: dict) -> str:
    return TITLES[family_of_class(record["pipeline_class"]).component]


def _provenance(record: dict, trained_on: Model | None) -> list[str]:
    config = record["config"]
    lines = [f"base model: {_code(record['base_model'])}"]
    if trained_on is not None and trained_on.name != record["base_model"]:
        lines.append(f"trained on: {_code(trained_on.name)}")
    lines += [
        f"objective: {_method(record['objective'])}",
    ]
    if (method := METHODS.get(record["objective"])) is None or method.beta is not None:
        lines.append(
            f"beta: {record['beta_mean']:g} for a mean over the latent's values, which is {record['beta_sum']:.4g} for their sum"
        )
    for name, title in (
        ("anchor", "mean squared distance to the reference's predictions"),
        ("sft_weight", "chosen image's error"),
    ):
        if config.get(name):  # results of earlier versions do not have it
            lines.append(f"added to the loss: {config[name]:g} times the {title}")
    if config["lora_rank"]:
        lines.append(f"LoRA: rank {config['lora_rank']}, alpha {config['lora_alpha'] or config['lora_rank']:g}")
    if (kind := config.get("quantize", "no")) != "no":
        lines.append(
            f"the base model's linear layers were in {kind} during training, and are not in what is loaded here"
        )
    lines += [
        f"learning rate: {record['absolute_learning_rate']:g}, {_code(config['lr_scheduler'])}; {record['optimizer']}",
        f"steps: {record['steps']}, with {record['effective_batch']} pairs each",
        f"pairs: {record['n_pairs']}" + (f", where {_code(config['where'])}" if config["where"] else ""),
    ]
    for name, labeler in record["labelers"].items():
        scorers = labeler.get("scorers", [])
        by = f" (scorers: {', '.join(_code(scorer) for scorer in scorers)})" if scorers else ""
        lines.append(f"labeler: {_code(name)}{by}")
    lines.append(f"run: {_code(record['run_id'])}, seed {config['seed']}")
    lines.append("versions: " + ", ".join(f"{name} {version}" for name, version in record["versions"].items()))
    return lines


def _evaluation(result: dict) -> str:
    n_trained = result["n_trained_prompts"]
    seen = f"; {n_trained} of them were used in training" if n_trained else ""
    if n_trained is None:
        seen = "; how many of them were used in training is not known"
    lines = [
        f"Against {_code(result['baseline'])}, from the same noise, on {result['n_prompts']} prompts{seen}. Ties count one "
        "half; intervals are 95 % intervals over prompts.",
        "",
        "| scorer | win rate | interval | prompts | pairs |",
        "|---|---|---|---|---|",
    ]
    for name, row in result["scorers"].items():
        # a bar ends a table cell, even inside code
        scorer = _code(name).replace("|", r"\|") + (" (in-sample)" if row["in_sample"] else "")
        low, high = row["win_rate_low"], row["win_rate_high"]
        interval = no_interval(row["n_prompts"]) if low is None else f"{100 * low:.1f} to {percent(high)}"
        lines.append(f"| {scorer} | {percent(row['win_rate'])} | {interval} | {row['n_prompts']} | {row['n_pairs']} |")
    return "\n".join(lines)


def _code(text: str) -> str:
    """Inline code that Markdown shows unchanged: one line, between more backticks than the text has in a row."""
    text = visible(" ".join(str(text).split()))
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}" if "`" in text else f"{ticks}{text}{ticks}"


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return bool(HUB_ID.fullmatch(name)) and not Path(name).exists()  # find_model prefers a folder to the hub
