"""The README of a trained model: what it is, how to load it, what it was made from, how often it wins."""

import json
import re
from pathlib import Path
from typing import Literal
from uuid import UUID

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..store.models import BUILT_IN, LORA_FILE
from ..store.pairstore import PairStore
from ..store.query import visible

Output = Literal["pipeline", "unet", "lora", "kohya"]
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
_WHAT = {
    "pipeline": "A text-to-image pipeline",
    "unet": "The U-Net of a text-to-image pipeline",
    "lora": "A LoRA for the U-Net of a text-to-image pipeline, in diffusers' layout",
    "kohya": "A LoRA for the U-Net of a text-to-image pipeline, in the layout of kohya's sd-scripts",
}
_METHODS = {
    "dpo": "Diffusion-DPO ([arXiv 2311.12908](https://arxiv.org/abs/2311.12908))",
    "sft": "SFT",
    "ipo": "IPO on denoising errors ([arXiv 2310.12036](https://arxiv.org/abs/2310.12036))",
    "hinge": "the hinge loss of SLiC on denoising errors ([arXiv 2305.10425](https://arxiv.org/abs/2305.10425))",
    "mapo": "MaPO ([arXiv 2406.06424](https://arxiv.org/abs/2406.06424))",
    "kto": "Diffusion-KTO ([arXiv 2404.04465](https://arxiv.org/abs/2404.04465))",
}
_TAGS = {"dpo": "diffusion-dpo"}


def evaluations_of(store: PairStore, model_id: UUID) -> list[dict]:
    """What the finished runs of `eval` found about a tuned model, oldest first; as `evaluate` returns it."""
    query = """
        select summary from runs
        where kind = 'eval' and status = 'done' and summary->>'$.model_id' = ?
        order by started, run_id"""
    return [json.loads(summary) for (summary,) in store.rows(query, [str(model_id)])]


def model_card(about: dict, evaluations: list[dict]) -> str:
    """The text of README.md.

    Args:
        about: what `train` writes to prefloop.json. `pipeline_class` is the class of the pipeline, `objective` the name of the
            loss, `output` one of pipeline, unet, lora, kohya.
        evaluations: results of `evaluate` about this model.
    """
    if about["pipeline_class"] not in PIPELINES:
        raise ValueError(f"no card is known for a {about['pipeline_class']}; there are {', '.join(PIPELINES)}")
    lora = about["output"] in ("lora", "kohya")
    objective, base = about["objective"], about["base_model"]
    on_hub = _is_hub_id(base)
    tags = ["text-to-image", _TAGS.get(objective, objective), "prefloop"] + ["lora"] * lora
    front = ModelCardData(
        base_model=base if on_hub else None,
        base_model_relation=("adapter" if lora else "finetune") if on_hub else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=tags,
    )
    method = _METHODS.get(objective, objective)
    parts = [
        f"---\n{front.to_yaml()}\n---",
        "# A model tuned on preferences",
        f"{_WHAT[about['output']]}: {_code(base)}, tuned by {method} on {about['n_pairs']} preference pairs with prefloop.",
        "## Loading",
        f"```python\n{_snippet(about)}\n```",
    ]
    if about["output"] == "kohya":
        parts.append(f"`{LORA_FILE}` can also be put among the LoRAs of programs that read kohya's layout.")
    parts += ["## Made from", "\n".join(f"- {line}" for line in _provenance(about))]
    if evaluations:
        parts += ["## Win rates", *(_evaluation(one) for one in evaluations)]
    if any(row["in_sample"] for one in evaluations for row in one["scorers"].values()):
        parts.append("A scorer marked in-sample made the labels that the model was trained on: it is no witness.")
    return "\n\n".join(parts) + "\n"


def _snippet(about: dict) -> str:
    family, base = about["pipeline_class"], about["base_model"]
    lines = ["import torch", f"from diffusers import {family}"]
    source = repr(base)
    if base in BUILT_IN and about["output"] != "pipeline":
        lines.append("from prefloop.store.models import find_model")
        source = f"find_model({base!r}).source"
    lines += ["", 'folder = "."  # this folder, or the name of its repository on the hub']
    # without a dtype the parts of a pipeline come in those they are stored in, which may differ
    dtype = "torch_dtype=torch.float32"
    if about["output"] == "pipeline":
        lines.append(f"pipeline = {family}.from_pretrained(folder, {dtype})")
    elif about["output"] == "unet":
        lines[1] += ", UNet2DConditionModel"
        lines.append(f'unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", {dtype})')
        lines.append(f"pipeline = {family}.from_pretrained({source}, unet=unet, {dtype})")
    else:
        lines.append(f"pipeline = {family}.from_pretrained({source}, {dtype})")
        lines.append(f'pipeline.load_lora_weights(folder, weight_name="{LORA_FILE}")')
    if family.endswith("Img2ImgPipeline"):
        return "\n".join([*lines, 'image = pipeline("a red circle", image=draft).images[0]'])
    return "\n".join([*lines, 'image = pipeline("a red circle left of a blue square").images[0]'])


def _provenance(about: dict) -> list[str]:
    config = about["config"]
    lines = [
        f"base model: {_code(about['base_model'])}",
        f"objective: {_METHODS.get(about['objective'], about['objective'])}",
    ]
    if about["objective"] != "sft":
        lines.append(
            f"beta: {about['beta_mean']:g} times a mean over a latent's values, {about['beta_sum']:.4g} times their sum"
        )
    if about["output"] in ("lora", "kohya"):
        lines.append(f"LoRA: rank {config['lora_rank']}, alpha {config['lora_alpha'] or config['lora_rank']:g}")
    lines += [
        f"learning rate: {about['absolute_learning_rate']:g}, {_code(config['lr_scheduler'])}; {about['optimizer']}",
        f"steps: {about['steps']}, of {about['effective_batch']} pairs each",
        f"pairs: {about['n_pairs']}" + (f", where {_code(config['where'])}" if config["where"] else ""),
    ]
    for name in about["labels"]:
        scorers = about["labelers"].get(name, {}).get("scorers", [])
        by = f", by {', '.join(_code(scorer) for scorer in scorers)}" if scorers else ""
        lines.append(f"labeler: {_code(name)}{by}")
    lines.append(f"run: {_code(about['run_id'])}, seed {config['seed']}")
    lines.append("versions: " + ", ".join(f"{name} {version}" for name, version in about["versions"].items()))
    return lines


def _evaluation(result: dict) -> str:
    trained = result["n_trained_prompts"]
    seen = f"; {trained} of them were trained on" if trained else ""
    lines = [
        f"Against {_code(result['against'])}, from the same noise, on {result['n_prompts']} prompts{seen}. Ties count one "
        "half; intervals are of 95 %, over prompts.",
        "",
        "| scorer | win rate | interval | prompts | pairs |",
        "|---|---|---|---|---|",
    ]
    for name, row in result["scorers"].items():
        # in a table a bar ends the cell, in code too
        scorer = _code(name).replace("|", r"\|") + (" (in-sample)" if row["in_sample"] else "")
        low, high = f"{100 * row['low']:.1f}", f"{100 * row['high']:.1f}"
        lines.append(
            f"| {scorer} | {100 * row['win_rate']:.1f} % | {low} to {high} % | {row['n_prompts']} | {row['n_pairs']} |"
        )
    return "\n".join(lines)


def _code(text: str) -> str:
    """The text as Markdown shows it unchanged: code, on one line, between more backticks than it has in a row."""
    text = visible(" ".join(str(text).split()))
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}" if "`" in text else f"{ticks}{text}{ticks}"


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not Path(name).exists()  # a folder goes before the hub, as in find_model
