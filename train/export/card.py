"""The README of a trained model: what it is, how to load it, what it was made from, how often it wins."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from uuid import UUID

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ...core.hub import HUB_ID
from ...models.families import PIPELINES, family_of_class
from ...models.model import Composition, Model, Part
from ...models.resolve import BUILT_IN, LORA_FILE
from ...store.pairstore import PairStore
from ...store.query import visible

Output = Literal["pipeline", "unet", "lora", "kohya"]
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


def model_card(about: dict, evaluations: list[dict], on: Model | None = None) -> str:
    """The text of README.md.

    Args:
        about: what `train` writes to prefloop.json. `pipeline_class` is the class of the pipeline, `objective` the name of the
            loss, `output` one of pipeline, unet, lora, kohya.
        evaluations: results of `evaluate` about this model.
        on: the model it was trained on; None takes `base_model` of `about` for it.
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
        f"```python\n{_snippet(about, on)}\n```",
    ]
    if (needs := _needs(about, on)) is not None:
        parts.append(needs)
    if about["output"] == "kohya":
        parts.append(f"`{LORA_FILE}` can also be put among the LoRAs of programs that read kohya's layout.")
    parts += ["## Made from", "\n".join(f"- {line}" for line in _provenance(about, on))]
    if evaluations:
        parts += ["## Win rates", *(_evaluation(one) for one in evaluations)]
    if any(row["in_sample"] for one in evaluations for row in one["scorers"].values()):
        parts.append("A scorer marked in-sample made the labels that the model was trained on: it is no witness.")
    return "\n\n".join(parts) + "\n"


def _snippet(about: dict, on: Model | None) -> str:
    family, output = about["pipeline_class"], about["output"]
    known = family_of_class(family)
    # without a dtype the parts of a pipeline come in those they are stored in, which may differ
    dtype = "torch_dtype=torch.float32"
    classes, lines, parts = [family], ["", 'folder = "."  # this folder, or the name of its repository on the hub'], []
    if output == "pipeline":
        lines.append(f"pipeline = {family}.from_pretrained(folder, {dtype})")
        return _code_of(classes, lines, family)
    made = Composition(_named(about["base_model"])) if on is None else on.composition
    unet = 'folder, subfolder="unet"' if output == "unet" else _arguments(made.unet)
    for name, kind, arguments in (
        (known.component, known.model_class, unet),
        ("vae", known.vae_class, _arguments(made.vae)),
    ):
        if arguments:
            classes.append(kind)
            parts.append(f"{name}={name}, ")
            lines.append(f"{name} = {kind}.from_pretrained({arguments}, {dtype})")
    source = repr(made.root.source)
    if made.root.built_in:
        lines.insert(0, "from prefloop.models.resolve import find_model")
        source = f"find_model({made.root.name!r}).source"
    pinned = f", revision={made.root.revision!r}" if made.root.revision else ""
    lines.append(f"pipeline = {family}.from_pretrained({source}{pinned}, {''.join(parts)}{dtype})")
    if output != "unet":
        lines += _loras(made.loras)
    return _code_of(classes, lines, family)


def _loras(earlier: Sequence[str]) -> list[str]:
    loading = f'weight_name="{LORA_FILE}")'
    lines = []
    if earlier:
        folders = ", ".join(repr(str(Path(folder).resolve())) for folder in earlier)
        lines = [
            f"for earlier in [{folders}]:  # what it was trained on, in this order",
            f"    pipeline.load_lora_weights(earlier, {loading}",
            "    pipeline.fuse_lora()",
            "    pipeline.unload_lora_weights()",
        ]
    return [*lines, f"pipeline.load_lora_weights(folder, {loading}"]


def _arguments(part: Part | None) -> str | None:
    if part is None:
        return None
    source = str(Path(part.source).resolve()) if Path(part.source).is_dir() else part.source
    named = (("subfolder", part.subfolder), ("revision", part.revision))
    return ", ".join([repr(source), *(f"{name}={value!r}" for name, value in named if value)])


def _named(base: str) -> Model:
    """The pipeline of a name that is not looked for."""
    return Model(base, base, UUID(int=0), built_in=base in BUILT_IN)


def _code_of(classes: Sequence[str], lines: Sequence[str], family: str) -> str:
    image = 'image = pipeline("a red circle left of a blue square").images[0]'
    if family.endswith("Img2ImgPipeline"):
        image = 'image = pipeline("a red circle", image=draft).images[0]'
    return "\n".join(["import torch", f"from diffusers import {', '.join(classes)}", *lines, image])


def _needs(about: dict, on: Model | None) -> str | None:
    """What a result cannot be loaded without, beside the pipeline at the bottom."""
    if on is None or about["output"] == "pipeline":
        return None
    made = on.composition
    loras = made.loras if about["output"] != "unet" else ()
    unet = made.unet if about["output"] != "unet" else None
    parts = [
        f"the {name} {_code(part.source)}" for name, part in (("U-Net", unet), ("VAE", made.vae)) if part is not None
    ]
    parts += [f"the LoRA {_code(folder)}" for folder in loras]
    if not parts:
        return None
    said = f"It needs {', '.join(parts)} below it, as above: without them it is another model."
    if about.get("kohya"):
        combined = f"holds the {len(loras) + 1} LoRAs in one" if loras else "is the same LoRA"
        on_what = f"the U-Net {_code(unet.source)}" if unet is not None else _code(made.root.name)
        said += f" `kohya.safetensors` {combined}, for {on_what}."
    return f"{said} `prefloop train --output pipeline` writes a result that needs nothing else."


def _provenance(about: dict, on: Model | None) -> list[str]:
    config = about["config"]
    lines = [f"base model: {_code(about['base_model'])}"]
    if on is not None and on.name != about["base_model"]:
        lines.append(f"trained on: {_code(on.name)}")
    lines += [
        f"objective: {_METHODS.get(about['objective'], about['objective'])}",
    ]
    if about["objective"] != "sft":
        lines.append(
            f"beta: {about['beta_mean']:g} times a mean over a latent's values, {about['beta_sum']:.4g} times their sum"
        )
    if config["lora_rank"]:
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
    if trained is None:
        seen = "; which of them were trained on is not known"
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
    return bool(HUB_ID.fullmatch(name)) and not Path(name).exists()  # a folder goes before the hub, as in find_model
