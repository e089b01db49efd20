"""The code that loads a result in plain diffusers, for its model card."""

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from ...core.errors import PrefloopError
from ...models.families import Family, family_of_class, known_family
from ...models.model import COMPONENTS, Composition, Model, Part
from ...models.names import BUILT_IN, LORA_FILE


def snippet(record: dict, trained_on: Model | None) -> str:
    """The code, for a result with this prefloop.json.

    Args:
        trained_on: None if that is unknown or no longer exists.
    """
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
        # load_lora_weights takes a file's own path too, and then no name
        folders = ", ".join(repr(str(Path(folder).resolve())) for folder in earlier_folders)
        with_files = any(Path(folder).is_file() for folder in earlier_folders)
        lines = [
            f"for earlier in [{folders}]:  # the LoRAs it was trained on, in this order",
            "    pipeline.load_lora_weights(earlier)"
            if with_files
            else f"    pipeline.load_lora_weights(earlier, {loading}",
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
    """The arguments with which the pipeline is called: what it is trained with."""
    if family.starts_from_image:
        return '"a red circle", image=draft'
    settings = dict(family.call_settings)
    if family.negative_prompt:
        settings["negative_prompt"] = family.negative_prompt
    return ", ".join(
        ['prompt="a red circle left of a blue square"', *(f"{name}={value!r}" for name, value in settings.items())]
    )


def _script(classes: Sequence[str], lines: Sequence[str], call: str) -> str:
    return "\n".join(
        ["import torch", f"from diffusers import {', '.join(classes)}", *lines, f"image = pipeline({call}).images[0]"]
    )
