"""The model card (README.md) of a result: what it is, how to load it, how it was trained, its win rates."""

import json
import re
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Literal
from uuid import UUID

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ...core.errors import PrefloopError
from ...core.hub import HUB_ID
from ...core.stats import no_interval
from ...models.families import PIPELINES, Family, family_of_class, known_family
from ...models.model import COMPONENTS, TITLES, Composition, Model, Part
from ...models.resolve import BUILT_IN, LORA_FILE
from ...models.text_to_image import pipeline_class
from ...store.pairstore import PairStore
from ...store.query import visible
from ..methods import METHODS

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
    """The summaries of finished runs of `eval` on a model, as `evaluate` returns them, oldest first."""
    query = """
        select summary from runs
        where kind = 'eval' and status = 'done' and summary->>'$.model_id' = ?
        order by started, run_id"""
    return [_with_todays_names(json.loads(summary)) for (summary,) in store.rows(query, [str(model_id)])]


def _with_todays_names(result: dict) -> dict:
    """A result of `evaluate`, which version 0.1 stored with other names: `against`, `low`, `high`."""
    scorers = {
        name: {{"low": "win_rate_low", "high": "win_rate_high"}.get(key, key): value for key, value in row.items()}
        for name, row in result.get("scorers", {}).items()
    }
    return {"baseline": result.get("against")} | result | {"scorers": scorers}


def model_card(record: dict, evaluations: list[dict], trained_on: Model | None = None) -> str:
    """The text of README.md.

    Args:
        record: what `train` writes to prefloop.json. `pipeline_class` is the class of the pipeline, `objective` the name of the
            loss, `output` one of pipeline, unet, transformer, lora, kohya.
        evaluations: results of `evaluate` on this model.
        trained_on: the model it was trained on; if None, `base_model` of `record`.
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
        f"```python\n{_snippet(record, trained_on)}\n```",
    ]
    if (needs := _requirements(record, trained_on)) is not None:
        parts.append(needs)
    if record["output"] == "kohya":
        parts.append(f"`{LORA_FILE}` also works in programs that read kohya's layout, such as ComfyUI.")
    parts += ["## Training", "\n".join(f"- {line}" for line in _provenance(record, trained_on))]
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


def _snippet(record: dict, trained_on: Model | None) -> str:
    family, output = record["pipeline_class"], record["output"]
    root = None if trained_on is None else _readable(trained_on.root)
    known = (None if root is None else known_family(root)) or family_of_class(family)
    call = _call(known)
    left_out = "" if root is None else "".join(f"{part}=None, " for part in root.settings.left_out)
    # without a dtype each part of a pipeline keeps the one it is stored in, and they may differ
    dtype = "torch_dtype=torch.float32"
    classes, lines, parts = [family], ["", 'folder = "."  # this folder, or the name of its repository on the hub'], []
    if output == "pipeline":
        lines.append(f"pipeline = {family}.from_pretrained(folder, {left_out}{dtype})")
        return _script(classes, lines, call)
    composition = Composition(_unresolved(record["base_model"])) if trained_on is None else trained_on.composition
    component = f"folder, subfolder={output!r}" if output in COMPONENTS else _arguments(composition.component)
    for name, kind, arguments in (
        (known.component, known.model_class, component),
        ("vae", known.vae_class, _arguments(composition.vae)),
    ):
        if arguments:
            classes.append(kind)
            parts.append(f"{name}={name}, ")
            lines.append(f"{name} = {kind}.from_pretrained({arguments}, {dtype})")
    source = repr(composition.root.source)
    if composition.root.built_in:
        lines.insert(0, "from prefloop.models.resolve import find_model")
        source = f"find_model({composition.root.name!r}).source"
    pinned = f", revision={composition.root.revision!r}" if composition.root.revision else ""
    lines.append(f"pipeline = {family}.from_pretrained({source}{pinned}, {left_out}{''.join(parts)}{dtype})")
    if output not in COMPONENTS:
        if not known.lora_loader:
            lines.insert(0, "from peft import PeftModel")
        lines += _loras(composition.loras) if known.lora_loader else _peft_loras(known, composition.loras)
    return _script(classes, lines, call)


def _readable(root: Model) -> Model | None:
    """The model, if its settings can be read now; a card can be written without them."""
    try:
        _ = root.settings
    except PrefloopError:
        return None
    return root


def _loras(earlier_folders: Sequence[str]) -> list[str]:
    loading = f'weight_name="{LORA_FILE}")'
    lines = []
    if earlier_folders:
        folders = ", ".join(repr(str(Path(folder).resolve())) for folder in earlier_folders)
        lines = [
            f"for earlier in [{folders}]:  # the LoRAs it was trained on, in this order",
            f"    pipeline.load_lora_weights(earlier, {loading}",
            "    pipeline.fuse_lora()",
            "    pipeline.unload_lora_weights()",
        ]
    return [*lines, f"pipeline.load_lora_weights(folder, {loading}"]


def _peft_loras(family: Family, earlier_folders: Sequence[str]) -> list[str]:
    part = f"pipeline.{family.component}"
    fused = f"{part} = PeftModel.from_pretrained({part}, {{}}).merge_and_unload()"
    lines = []
    if earlier_folders:
        folders = ", ".join(repr(str(Path(folder).resolve())) for folder in earlier_folders)
        lines = [f"for earlier in [{folders}]:  # the LoRAs it was trained on, in this order"]
        lines.append(f"    {fused.format('earlier')}")
    return [*lines, fused.format("folder")]


def _arguments(part: Part | None) -> str | None:
    if part is None:
        return None
    source = str(Path(part.source).resolve()) if Path(part.source).is_dir() else part.source
    kwargs = (("subfolder", part.subfolder), ("revision", part.revision))
    return ", ".join([repr(source), *(f"{name}={value!r}" for name, value in kwargs if value)])


def _unresolved(base: str) -> Model:
    """A pipeline of that name, without looking for its files."""
    return Model(base, base, UUID(int=0), built_in=base in BUILT_IN)


def _call(family: Family) -> str:
    """The arguments with which the pipeline is called: what it is trained with and does not do by default."""
    if family.starts_from_image:
        return '"a red circle", image=draft'
    defaults = signature(pipeline_class(family.pipeline_class).__call__).parameters
    settings = {name: value for name, value in family.call_settings.items() if value != defaults[name].default}
    if family.negative_prompt:
        settings["negative_prompt"] = family.negative_prompt
    return ", ".join(
        ['prompt="a red circle left of a blue square"', *(f"{name}={value!r}" for name, value in settings.items())]
    )


def _script(classes: Sequence[str], lines: Sequence[str], call: str) -> str:
    return "\n".join(
        ["import torch", f"from diffusers import {', '.join(classes)}", *lines, f"image = pipeline({call}).images[0]"]
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
        text += f" `kohya.safetensors` {contents}, for {target}."
    return f"{text} `prefloop train --output pipeline` writes a result that needs nothing else."


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
        interval = no_interval(row["n_prompts"]) if low is None else f"{100 * low:.1f} to {100 * high:.1f} %"
        lines.append(
            f"| {scorer} | {100 * row['win_rate']:.1f} % | {interval} | {row['n_prompts']} | {row['n_pairs']} |"
        )
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
