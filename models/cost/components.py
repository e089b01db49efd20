"""The parts of a pipeline on torch's meta device, where a model of any size takes no memory."""

import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from ...core.errors import IntegrityError
from ..families import Family
from ..families.checks import component_from
from ..families.settings import PipelineSettings
from ..lora import add_adapter, lora_layers
from ..quantized import quantizable


@dataclass(frozen=True)
class TrainedComponent:
    """A U-Net or transformer in training mode; with a LoRA everything else is frozen."""

    model: Any
    n_linear: int
    """Linear layers, without the LoRA's own."""
    n_lora_layers: int
    """Those that the LoRA is on; 0 if every weight is trained."""
    quantizable: tuple[int, ...] = ()
    """Number of weights in each layer that can be quantized beside a LoRA."""

    @property
    def n_parameters(self) -> int:
        """Of the model as it is loaded, without the LoRA's."""
        return count_parameters(self.model) - (self.n_trained if self.n_lora_layers else 0)

    @property
    def n_trained(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)


def trained_component(
    family: Family, lora_rank: int, lora_targets: tuple[str, ...] | None, frozen_dtype: torch.dtype = torch.float32
) -> TrainedComponent:
    """
    Args:
        family: with checked settings.
        lora_rank: 0 trains every weight.
        lora_targets: endings of the names of the layers that the LoRA is put on; None is the family's own.
        frozen_dtype: of the weights that a LoRA leaves as they are; its own are float32.

    Raises:
        UsageError: if no layer has such a name.
    """
    with torch.device("meta"):
        model: Any = component_from(family.model_class, family.settings.parts[family.component])
        n_linear, layers, sizes = sum(isinstance(module, nn.Linear) for module in model.modules()), [], ()
        if lora_rank:
            layers = lora_layers(model, lora_targets, family.lora_targets)
            nn.Module.to(model.requires_grad_(False), frozen_dtype)  # diffusers' own warns of modules it keeps
            sizes = tuple(layer.weight.numel() for layer in quantizable(model).values())
            add_adapter(model, LoraConfig(r=lora_rank, target_modules=list(layers)))
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
    # a constructor may make tensors of numpy's, which no device is chosen for
    return TrainedComponent(model.to("meta").train(), n_linear, len(layers), sizes)


def frozen_vae(family: Family) -> Any:
    with torch.device("meta"):
        vae = component_from(family.vae_class, family.settings.parts["vae"])
    return vae.to("meta").eval().requires_grad_(False)


def text_encoder(settings: PipelineSettings, part: str) -> Any:
    """A text encoder by the class that model_index.json names.

    Raises:
        IntegrityError: if it is not a class of transformers, or cannot be made from its settings.
    """
    kind = _text_class(settings, part)
    config = _text_config(settings, part)
    try:
        with torch.device("meta"):
            return kind(config)
    except Exception as error:  # a constructor may raise anything
        raise _cannot_make(settings, part, error) from error


def with_text_defaults(family: Family) -> Family:
    """The family with the settings of its text encoders completed by the defaults of their classes.

    Raises:
        IntegrityError: if a text encoder is missing or has settings that its class refuses.
    """
    encoders = {part: _text_config(family.settings, part).to_dict() for part in family.text_encoders}
    record: Any = family  # the protocol does not say that families are dataclasses
    return replace(record, settings=replace(family.settings, parts=family.settings.parts | encoders))


def _text_class(settings: PipelineSettings, part: str) -> Any:
    import transformers

    library, name = settings.index[part]
    kind = getattr(transformers, name, None) if library == "transformers" else None
    if not (inspect.isclass(kind) and issubclass(kind, transformers.PreTrainedModel)):
        raise IntegrityError(
            f"the {part} of the model {settings.model} cannot be used: {library}'s {name} is not a model of transformers "
            f"{transformers.__version__}"
        )
    return kind


def _text_config(settings: PipelineSettings, part: str) -> Any:
    kind = _text_class(settings, part)
    if not settings.parts.get(part):
        raise IntegrityError(
            f"cannot load the model {settings.model}: its {part} is missing; fetch or save the model again"
        )
    try:
        return kind.config_class.from_dict(settings.parts[part])
    except Exception as error:  # it checks types, and raises its own kinds of errors
        raise _cannot_make(settings, part, error) from error


def _cannot_make(settings: PipelineSettings, part: str, error: Exception) -> IntegrityError:
    line = (" ".join(str(error).split()) or type(error).__name__)[:300]
    return IntegrityError(f"the {part} of the model {settings.model} cannot be made from its settings: {line}")


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
