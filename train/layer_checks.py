"""What does not fit the layers of the model is refused before anything is encoded, which may take hours."""

from typing import Any

from ..core.errors import UsageError
from ..models.families import Family
from ..models.loading import component_shape
from ..models.lora import lora_layers
from ..models.model import Model
from ..models.resolve import find_model
from .config import TrainConfig
from .export.kohya import refuse_nameless_layers


def refuse_unfit(config: TrainConfig, family: Family, model: Model) -> None:
    """
    Raises:
        UsageError, IntegrityError: if the reference, the LoRA or model to start from, or the LoRA's layers do not fit.
    """
    if config.reference is None and config.init_from is None and config.lora_targets is None:
        return
    component = component_shape(model)
    if config.lora_rank:
        layers = lora_layers(component, config.lora_targets, family.lora_targets)
        if config.kohya_file:
            refuse_nameless_layers(component, layers)
    if config.reference is not None:
        refuse_other_shapes(component, component_shape(find_model(config.reference)), config)


def refuse_other_shapes(component: Any, reference: Any, config: TrainConfig) -> None:
    own, other = (
        {name: tuple(weight.shape) for name, weight in part.named_parameters()} for part in (component, reference)
    )
    if own != other:
        name = next(name for name in sorted(own.keys() | other.keys()) if own.get(name) != other.get(name))
        raise UsageError(
            f"the reference {config.reference} is of another kind than {config.model}: {name} is "
            f"{other.get(name, 'missing')} instead of {own.get(name, 'missing')}; name a model of the same kind"
        )
