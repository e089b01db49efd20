"""The model that is trained and the reference it is compared with."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..core.errors import PrefloopError
from ..models import loading
from ..models.families import Family
from ..models.lora import (
    Adapter,
    adapter_of,
    add_adapter,
    combined,
    fuse,
    lora_layers,
    write_peft_adapter,
)
from ..models.lora_file import read_loras
from ..models.model import Model
from ..models.names import LORA_FILE
from ..models.quantized import QuantizedLinear, quantize
from .background import host_copy, save_copied
from .compilation import compile_blocks
from .config import TrainConfig
from .export.kohya import refuse_nameless_layers, save_kohya
from .layer_checks import refuse_other_shapes
from .placement import prefers_channels_last, round_as_autocast, to_channels_last
from .sharding import own_part, shard, whole_component

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Policy:
    """A U-Net or transformer with trainable weights, and its reference: another model, a frozen copy, or itself with the adapter
    disabled."""

    def __init__(
        self,
        component: Any,
        config: TrainConfig,
        family: Family,
        reference: Any = None,
        device: torch.device | None = None,
    ) -> None:
        """
        Args:
            reference: the component of another model to compare with.
            device: where weights are quantized, if they are; where they lie if not given, and a CPU takes minutes for billions.

        Raises:
            UsageError: if its weights have other names or shapes.
        """
        self.component, self.family = component, family
        self.lora, self.compiles = config.lora_rank > 0, config.compile
        self.sharded, self._gathered = config.fsdp, False
        """Whether its weights are split over the processes; it then runs only in all of them at once."""
        self._half = HALF.get(config.mixed_precision)
        self._reference = reference
        if reference is not None:
            refuse_other_shapes(component, reference, config)
            reference.requires_grad_(False).eval()
            if self.lora:
                _shrink(reference, config, device)
        if self.lora:
            component.requires_grad_(False)
            _shrink(component, config, device)
            self.lora_layers = lora_layers(component, config.lora_targets, family.lora_targets)
            """Names of the layers that the LoRA is put on."""
            if config.kohya_file:
                refuse_nameless_layers(component, self.lora_layers)
            with torch.random.fork_rng():
                torch.manual_seed(config.seed)
                add_adapter(
                    component,
                    LoraConfig(
                        r=config.lora_rank,
                        lora_alpha=config.lora_alpha or config.lora_rank,  # type: ignore[arg-type]  # a float works
                        init_lora_weights="gaussian",
                        # not the endings: in FLUX.2 attn.to_out is a layer in some blocks and a list of layers in others
                        target_modules=list(self.lora_layers),
                    ),
                )
            for parameter in self.parameters():
                parameter.data = parameter.data.float()
            self._layers = [module for module in component.modules() if isinstance(module, BaseTunerLayer)]
        else:
            component.requires_grad_(True)
            if config.needs_reference and not config.reference_draws and reference is None:
                self._reference = copy.deepcopy(component).requires_grad_(False).eval()
            if self._reference is not None and config.mixed_precision in HALF:
                round_as_autocast(self._reference, HALF[config.mixed_precision])
        if config.gradient_checkpointing is True:
            component.enable_gradient_checkpointing()
        component.train()

    @property
    def has_reference(self) -> bool:
        """Whether the reference is still available once training has started."""
        return self.lora or self._reference is not None

    def description(self) -> str:
        """What is trained, in words."""
        n = sum(parameter.numel() for parameter in self.parameters())
        millions = f"{n / 1e6:.3g} million parameters"
        if not self.lora:
            return f"training {millions}"
        n_linear = sum(isinstance(module, nn.Linear) for module in self.component.modules()) - 2 * len(self.lora_layers)
        text = f"LoRA on {len(self.lora_layers)} of {n_linear} linear layers, {millions}"
        quantized = [module.kind for module in self.component.modules() if isinstance(module, QuantizedLinear)]
        return text + (f"; the weights of {len(quantized)} are in {quantized[0]}" if quantized else "")

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.component.parameters() if parameter.requires_grad]

    def to(self, device: torch.device) -> "Policy":
        if self.sharded:  # without a reference, and not compiled
            shard(self.component, device, self._half)
            return self
        for component in (self.component, self._reference):
            if component is not None:
                component.to(device)
                if prefers_channels_last(self.family, device):
                    to_channels_last(component)
                if self.compiles:
                    compile_blocks(component)
        return self

    @contextmanager
    def reference(self, wrapped: Any) -> Iterator[Any]:
        """The reference for the duration of the block, without gradients. `wrapped` is the component as accelerate wraps it.

        Without a copy or an adapter it is the policy as it is: right only before the first step.
        """
        with torch.no_grad():
            if self._reference is not None:
                yield self._reference
            elif self.lora:
                with self._adapter_disabled():
                    yield wrapped
            else:
                yield wrapped

    @contextmanager
    def _adapter_disabled(self) -> Iterator[None]:
        # peft's own disable_adapters walks all modules: 11 ms a step on Stable Diffusion 1.5, this 0.3 ms
        for layer in self._layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in self._layers:
                layer._disable_adapters = False

    def trainable_state(self) -> dict[str, Tensor]:
        """The weights that a checkpoint must contain."""
        return {
            name: parameter.detach() for name, parameter in self.component.named_parameters() if parameter.requires_grad
        }

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        own = self.trainable_state()
        if own.keys() != state.keys():
            raise PrefloopError("the checkpoint's weights belong to another model")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(own_part(state[name], parameter) if isinstance(parameter, DTensor) else state[name])

    def gathered(self, keep: bool) -> "Policy":
        """Itself; or if its weights are split over the processes, one to save, with all of them on the CPU.

        All processes must call this together.

        Args:
            keep: whether this process wants them; what it gets if not is of no use.
        """
        if not self.sharded:
            return self
        whole = copy.copy(self)
        whole.component = whole_component(self.component, getattr(diffusers, self.family.model_class), keep)
        whole.sharded, whole._gathered = False, True
        return whole

    def save_weights(self, output: Path) -> None:
        """What diffusers or peft loads: the LoRA for `load_lora_weights`, or for `PeftModel.from_pretrained` if the pipeline has no
        LoRA loader; or the component in its subfolder for `from_pretrained`."""
        self.copy_weights()(output)

    def copy_weights(self) -> Callable[[Path], None]:
        """Copy the weights to the host's memory; returns what `save_weights` is for them, whatever they become."""
        if not self.lora:
            component = self.component
            state, name = component.state_dict(), self.family.component
            if not self._gathered:
                state = host_copy(state)
            return lambda output: save_copied(type(component), component.config, state, output / name)
        return partial(self._save_lora, self.adapter())

    def _save_lora(self, copied: Adapter, output: Path) -> None:
        adapter: Any = self.component.peft_config
        settings = adapter["default"].to_dict()
        if not self.family.lora_loader:
            write_peft_adapter(output, copied, settings["target_modules"])
            return
        pipeline: Any = getattr(diffusers, self.family.pipeline_class)
        pipeline.save_lora_weights(
            output,
            weight_name=LORA_FILE,
            **{
                f"{self.family.component}_lora_layers": copied.state(),
                # peft keeps a set, whose order differs from process to process
                f"{self.family.component}_lora_adapter_metadata": settings
                | {"target_modules": sorted(settings["target_modules"])},
            },
        )

    def adapter(self) -> Adapter:
        """The LoRA with its current weights."""
        return adapter_of(self.component, self.family.component)

    def refuse_nameless(self, model: Model) -> None:
        """
        Raises:
            UsageError: if a LoRA that the model has is on a layer without a kohya name.
        """
        for adapter in read_loras(model, self.component):
            refuse_nameless_layers(self.component, list(adapter.layers))

    def save_kohya(self, path: Path, model: Model) -> None:
        """The LoRA in kohya's format, combined with any LoRAs it was trained on."""
        adapters = [*read_loras(model, self.component), self.adapter()]
        adapter = combined(adapters) if len(adapters) > 1 else adapters[0]
        velocity = self.family.noise().prediction_type == "v_prediction"
        save_kohya(self.component, adapter, path, v_prediction=velocity)

    def whole_component(self, model: Model) -> Any:
        """The component alone; if a LoRA was trained, a float32 copy with it fused.

        Args:
            model: what it was trained on.
        """
        if not self.lora:
            return self.component
        component = loading.load_component(model)
        fuse(component, self.adapter())
        return component

    def save_pipeline(self, output: Path, model: Model) -> None:
        """The whole pipeline with the tuned component."""
        vae = {} if model.composition.vae is None else {"vae": loading.load_vae(model)}
        loading.load_root(model, **{self.family.component: self.whole_component(model)}, **vae).save_pretrained(output)


def _shrink(frozen: Any, config: TrainConfig, device: torch.device | None) -> None:
    """Keep float32 weights as the run uses them; policy and reference round theirs the same way."""
    if config.quantize != "no":
        quantize(frozen, config.quantize, device)
    if config.mixed_precision in HALF:
        frozen.to(HALF[config.mixed_precision])
