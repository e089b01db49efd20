"""A LoRA in one file as ComfyUI and AUTOMATIC1111 users have it: kohya's, diffusers' or peft's names; read for a given component."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UsageError
from .lora import Adapter, read_adapter, settings_alpha
from .model import TITLES, Component, Model
from .names import PEFT_SETTINGS

if TYPE_CHECKING:
    from torch import Tensor

_PEFT = "base_model.model."
_KOHYA = "lora_unet_"
_MATRIX = re.compile(r"(.+?)[._](?:lora[._])?(A|B|down|up)\.weight")
_ATTENTION = re.compile(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?attentions\.(\d+)\.")


def read_loras(model: Model, module: Any) -> Iterator[Adapter]:
    """The LoRAs that a model has on its component, first to last."""
    component: Component = model.settings.component
    for lora in model.composition.loras:
        yield read_lora_file(Path(lora), module, component) if Path(lora).is_file() else read_adapter(lora)


def read_lora_file(path: Path, module: Any, component: Component) -> Adapter:
    """The LoRA in a file, on one component. Its layers may have different ranks and alphas: all get the largest rank, and the
    scale is in B.

    Raises:
        UsageError: if it is not a LoRA, is of another kind, or is on something else too.
    """
    import torch

    refuse_other_files(path)
    with _opened(path) as file:
        metadata = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    names, parts, alphas = _names(module), {}, {}
    for key, tensor in state.items():
        layer, part = _split(path, key, component)
        name = names.get(layer)
        if name is None:
            raise UsageError(
                f"{path} does not fit the {TITLES[component]} of the model: it has no layer {layer[:100]}; is the LoRA for "
                "another kind of model, such as SDXL instead of SD 1.5?"
            )
        if part == "alpha":
            alphas[name] = float(tensor)
        else:
            parts.setdefault(name, {})[part] = tensor.float()
    layers: dict[str, tuple[Tensor, Tensor]] = {}
    for name, both in sorted(parts.items()):
        a, b = both.get("A"), both.get("B")
        outputs, *kernel = module.get_submodule(name).weight.shape
        if a is None or b is None or a[0].numel() != torch.Size(kernel).numel() or b.numel() != outputs * a.shape[0]:
            raise UsageError(
                f"{path} does not fit the {TITLES[component]} of the model: {name} has another shape there"
            )
        layers[name] = a.flatten(1), b.reshape(outputs, -1)
    rank = max(a.shape[0] for a, _ in layers.values())
    for name, (a, b) in layers.items():
        alpha = alphas[name] if name in alphas else _alpha(path, state, metadata, component, a.shape[0])
        padding = rank - a.shape[0]
        layers[name] = (
            torch.nn.functional.pad(a, (0, 0, 0, padding)),
            torch.nn.functional.pad(b * (alpha / a.shape[0]), (0, padding)),
        )
    return Adapter(layers, rank, float(rank), component, str(path))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} cannot be read as safetensors: {str(error)[:200]}") from error


def refuse_other_files(path: Path) -> None:
    """Look at the names in a file, before anything slow is done.

    Raises:
        UsageError: if the file is not a LoRA of one component alone.
    """
    with _opened(path) as file:
        keys = list(file.keys())
    if any(".lora_te" in f".{key}" or key.startswith("text_encoder") for key in keys):
        raise UsageError(
            f"{path} is a LoRA for the text encoder too, which training does not start from; load it in diffusers with "
            "load_lora_weights and fuse_lora, save the pipeline with save_pretrained, and name that folder with --model"
        )
    if other := next(
        (key for key in keys if re.search(r"hada_|lokr_|dora_scale|lora_mid|\.diff(_b)?$|oft_|lora_magnitude", key)),
        None,
    ):
        raise UsageError(
            f"{path} is not a plain LoRA: it contains {other[:100]}; LoHa, LoKr, DoRA and the like are not supported"
        )
    if not any(_MATRIX.fullmatch(key) for key in keys):
        raise UsageError(
            f"{path} is not a LoRA; a checkpoint in one file becomes a folder for --model with diffusers' from_single_file and "
            "save_pretrained"
        )


def _split(path: Path, key: str, component: Component) -> tuple[str, str]:
    """The layer's name as in `_names`, and A, B or alpha."""
    layer = key
    for prefix in (f"{component}.", _PEFT):
        layer = layer.removeprefix(prefix)
    if layer == key and not key.startswith(_KOHYA):
        raise UsageError(
            f"{path} contains {key[:100]!r}; LoRAs of a {TITLES[component]} with kohya's, diffusers' or peft's names are supported"
        )
    if layer.endswith(".alpha"):
        return layer.removesuffix(".alpha").removeprefix(_KOHYA).replace(".", "_"), "alpha"
    match = _MATRIX.fullmatch(layer)
    if match is None:
        raise UsageError(f"{path} contains {key[:100]!r}, which is not part of a plain LoRA")
    # diffusers' first names: attn1.processor.to_q_lora.down.weight
    name = match[1].removesuffix("_lora").replace(".processor.", ".").replace("to_out_lora", "to_out.0")
    name = name.removeprefix(_KOHYA).replace(".", "_")
    if ".processor.to_out" in layer and not name.endswith("_0"):
        name += "_0"
    return name, {"down": "A", "up": "B"}.get(match[2], match[2])


def _names(module: Any) -> dict[str, str]:
    """Each layer's name with _ for dots, as kohya's sd-scripts write it, for SDXL also that in the original U-Net → its name."""
    layers = [
        name for name, layer in module.named_modules() if hasattr(layer, "weight") and not name.endswith("base_layer")
    ]
    names = {name.replace(".", "_"): name for name in layers}
    if getattr(module.config, "addition_embed_type", None) == "text_time":
        per_block = module.config.layers_per_block
        for name in layers:
            if match := _ATTENTION.match(name):
                names[f"{_original_block(match, per_block)}_{name[match.end() :].replace('.', '_')}"] = name
    return names


def _original_block(match: re.Match[str], layers_per_block: int) -> str:
    side, block, attention = match.groups()
    if side == "mid":
        return "middle_block_1"
    number = int(block) * (layers_per_block + 1) + int(attention)
    return f"input_blocks_{number + 1}_1" if side == "down" else f"output_blocks_{number}_1"


def _alpha(path: Path, state: dict[str, Any], metadata: dict[str, str], component: Component, rank: int) -> float:
    """The alpha of a layer whose file has none: that of the settings in its header or beside it, or else the rank."""
    if any(key.startswith(_PEFT) for key in state):
        beside = path.parent / PEFT_SETTINGS
        if not beside.is_file():
            raise UsageError(f"{path} needs {PEFT_SETTINGS} beside it, which holds the scale of the LoRA")
        return settings_alpha(beside, beside.read_text(), "", rank)
    return settings_alpha(path, metadata.get("lora_adapter_metadata"), f"{component}.", rank)
