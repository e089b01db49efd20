"""LoRAs of U-Nets and transformers: read without running or configuring anything from the file, fused, attached, combined.

Most are in diffusers' layout. Models whose pipelines have no LoRA loader have peft's: other names, and settings in a file.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import IntegrityError, UsageError
from .model import Component
from .names import LORA_FILE, PEFT_LORA_FILE, PEFT_SETTINGS

if TYPE_CHECKING:
    from torch import Tensor

_LAYER = re.compile(r"(unet|transformer)\.([\w.]+)\.lora_([AB])\.weight")
_PEFT = "base_model.model."  # begins the names of peft's layout, in which train writes LoRAs of transformers alone
# Settings of peft with which a layer gains something other than B A alpha / r.
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "fan_in_fan_out",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "use_rslora",
)


@dataclass(frozen=True)
class Adapter:
    """The weights of a LoRA: each layer gains B A alpha / rank."""

    layers: "dict[str, tuple[Tensor, Tensor]]"
    """The layer's name in the component → A (rank, inputs), B (outputs, rank); float32. Inputs of a convolution are those of its
    whole kernel."""
    rank: int
    alpha: float
    component: Component = "unet"
    """The part of the pipeline that it is for."""
    source: str = "the LoRA"

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    def state(self) -> "dict[str, Tensor]":
        """The weights by peft's names."""
        return {
            f"{name}.lora_{letter}.weight": matrix
            for name, matrices in self.layers.items()
            for letter, matrix in zip("AB", matrices, strict=True)
        }


def adapter_of(module: Any, component: Component) -> Adapter:
    """A copy of the one adapter that peft has on a component, in float32 on the CPU."""
    from peft.utils import get_peft_model_state_dict

    state = {name: tensor.detach().float().cpu().clone() for name, tensor in get_peft_model_state_dict(module).items()}
    names = sorted(name.removesuffix(".lora_A.weight") for name in state if name.endswith(".lora_A.weight"))
    settings = module.peft_config["default"]
    layers = {name: (state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]) for name in names}
    return Adapter(layers, settings.r, float(settings.lora_alpha), component)


def lora_layers(module: Any, requested: Sequence[str] | None, usual: Sequence[str]) -> list[str]:
    """The linear layers that a LoRA is put on.

    Args:
        requested: endings of their names, each at a dot; every one must match.
        usual: the family's, if None were requested; models of a family need not have all of them.

    Raises:
        UsageError: if nothing matches, since a LoRA on nothing trains nothing.
    """
    from torch import nn

    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    endings = usual if requested is None else requested
    matched = {ending: {name for name in linear if f".{name}".endswith(f".{ending}")} for ending in endings}
    missed = [ending for ending, names in matched.items() if not names]
    if missed and (requested is not None or len(missed) == len(matched)):
        last = sorted({name.rpartition(".")[2] for name in linear if not name.rpartition(".")[2].isdigit()})
        raise UsageError(
            f"no layer of the {type(module).__name__} has a name that ends in {' or '.join(missed)}; "
            f"linear layers end in {', '.join(last)}"
        )
    return [name for name in linear if any(name in names for names in matched.values())]


def add_adapter(module: Any, settings: Any) -> None:
    """Put a LoRA on a component, beside its weights.

    Args:
        settings: a LoraConfig of peft.
    """
    if hasattr(module, "add_adapter"):
        module.add_adapter(settings)
    else:
        from peft import inject_adapter_in_model

        inject_adapter_in_model(settings, module)


def write_peft_adapter(folder: Path, adapter: Adapter, targets: Sequence[str]) -> None:
    """Write a LoRA as `PeftModel.from_pretrained` loads it.

    Args:
        targets: endings of the names of the layers that it is on.
    """
    from safetensors.torch import save_file

    state = {f"{_PEFT}{name}": matrix.contiguous() for name, matrix in adapter.state().items()}
    save_file(state, folder / PEFT_LORA_FILE, {"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "target_modules": sorted(targets),
        "bias": "none",
        "inference_mode": True,
    }
    (folder / PEFT_SETTINGS).write_text(json.dumps(settings, indent=1))


def read_adapter(folder: str | Path) -> Adapter:
    """The LoRA that `train` wrote into a folder.

    Raises:
        IntegrityError: if the file contains anything else.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / LORA_FILE
    in_pefts_layout = not path.exists() and (Path(folder) / PEFT_LORA_FILE).exists()
    if in_pefts_layout:
        path = Path(folder) / PEFT_LORA_FILE
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path} contains no weights that can be loaded safely: {str(error)[:200]}") from error
    parts: dict[str, dict[str, Tensor]] = {}
    components: set[Component] = set()
    for name, tensor in state.items():
        match = _LAYER.fullmatch(name.replace(_PEFT, "transformer.", 1) if in_pefts_layout else name)
        if match is None:
            raise IntegrityError(
                f"{path} contains {name[:100]!r}; only LoRAs of a U-Net or a transformer in "
                f"{'peft' if in_pefts_layout else 'diffusers'}'s format are supported"
            )
        components.add("unet" if match[1] == "unet" else "transformer")
        parts.setdefault(match[2], {})[match[3]] = tensor.float()
    if len(components) != 1:
        raise IntegrityError(f"{path} must be a LoRA of one component, not of {len(components)}")
    (component,) = components
    ranks = set()
    for name, part in parts.items():
        a, b = part.get("A"), part.get("B")
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
            raise IntegrityError(f"{path}: the two matrices of {name} do not belong together")
        ranks.add(a.shape[0])
    if len(ranks) != 1:
        raise IntegrityError(f"{path}: its layers have {len(ranks)} ranks, but train writes one")
    (rank,) = ranks
    if in_pefts_layout:
        path = Path(folder) / PEFT_SETTINGS
        alpha = settings_alpha(path, _text(path), "", rank)
    else:
        alpha = settings_alpha(path, metadata.get("lora_adapter_metadata"), f"{component}.", rank)
    layers = {name: (part["A"], part["B"]) for name, part in sorted(parts.items())}
    return Adapter(layers, rank, alpha, component, str(path))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path} cannot be read, and holds the scale of the LoRA: {str(error)[:200]}") from error


def settings_alpha(path: Path, text: str | None, prefix: str, rank: int) -> float:
    """The only number of peft's settings that is used; without settings it is the rank, as in diffusers."""
    if text is None:
        return float(rank)
    try:
        settings = json.loads(text)
        unsupported = [name for name in _UNSUPPORTED if settings.get(f"{prefix}{name}")]
        alpha, header_rank = settings.get(f"{prefix}lora_alpha", rank), settings.get(f"{prefix}r", rank)
        number = float(alpha) if isinstance(alpha, int | float) and not isinstance(alpha, bool) else math.nan
    except (ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise IntegrityError(f"{path}: the settings in its header are not those of a LoRA") from error
    if unsupported or settings.get(f"{prefix}bias", "none") != "none":
        raise IntegrityError(f"{path}: it was made with {', '.join(unsupported) or 'bias'}, which is not supported")
    if not 0 < number < math.inf or header_rank != rank:
        raise IntegrityError(
            f"{path}: its header says rank {header_rank!r} and alpha {alpha!r}; its layers have rank {rank}"
        )
    return number


def require_fit(module: Any, adapter: Adapter, *, convolutions: bool = False) -> None:
    """
    Raises:
        IntegrityError: if a layer is not in the component or has another shape there.
    """
    from torch import nn

    modules = dict(module.named_modules())
    for name, (a, b) in adapter.layers.items():
        layer = modules.get(name)
        kinds = (nn.Linear, nn.Conv2d) if convolutions else nn.Linear
        if not isinstance(layer, kinds) or tuple(layer.weight.flatten(1).shape) != (b.shape[0], a.shape[1]):
            raise IntegrityError(
                f"{adapter.source} does not fit the {type(module).__name__} it is put on: {name} is not in it with that shape"
            )


def fuse(module: Any, adapter: Adapter) -> None:
    """Add the LoRA to the weights of a float32 component.

    Raises:
        IntegrityError: if it does not fit.
    """
    import torch

    require_fit(module, adapter, convolutions=True)
    with torch.no_grad():
        for name, (a, b) in adapter.layers.items():
            weight = module.get_submodule(name).weight
            weight += ((b @ a) * adapter.scaling).view_as(weight).to(weight.device)


def attach(module: Any, adapter: Adapter) -> None:
    """Add the LoRA beside the weights, in their dtype, as an adapter of peft made from our own settings.

    Raises:
        IntegrityError: if it does not fit.
    """
    import torch
    from peft import LoraConfig
    from peft.tuners.tuners_utils import BaseTunerLayer

    require_fit(module, adapter)
    dtype = module.dtype  # diffusers goes through all modules to tell it
    settings: dict[str, Any] = {"r": adapter.rank, "lora_alpha": adapter.alpha}  # a float alpha works
    with torch.random.fork_rng(devices=[]):
        add_adapter(module, LoraConfig(**settings, target_modules=sorted(adapter.layers)))
    adapted: dict[str, Any] = {
        name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)
    }
    if adapted.keys() != adapter.layers.keys():
        raise IntegrityError(f"{adapter.source}: the names of its layers match other layers too")
    with torch.no_grad():
        for name, (a, b) in adapter.layers.items():
            for matrix, value in ((adapted[name].lora_A, a), (adapted[name].lora_B, b)):
                matrix["default"].to(dtype).weight.copy_(value)
    module.requires_grad_(False)


def combined(adapters: Sequence[Adapter]) -> Adapter:
    """One LoRA that adds what several add one after the other: their matrices side by side, so the ranks add up.

    A layer that only some of them have gets zeros from the others.
    """
    import torch

    rank = sum(adapter.rank for adapter in adapters)
    shapes = {name: (a.shape[1], b.shape[0]) for adapter in adapters for name, (a, b) in adapter.layers.items()}
    layers = {}
    for name, (inputs, outputs) in sorted(shapes.items()):
        parts = [
            adapter.layers.get(name, (torch.zeros(adapter.rank, inputs), torch.zeros(outputs, adapter.rank)))
            for adapter in adapters
        ]
        scaled = [b * adapter.scaling for adapter, (_, b) in zip(adapters, parts, strict=True)]
        layers[name] = (torch.cat([a for a, _ in parts]), torch.cat(scaled, dim=1))
    return Adapter(layers, rank, float(rank), adapters[-1].component, adapters[-1].source)
