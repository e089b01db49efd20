"""Load what a model consists of: the one way for generating, training and exporting."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import IntegrityError, PrefloopError, UsageError
from ..core.hub import cannot_fetch
from ..core.progress import quiet_libraries
from .config_files import INDEX, read_settings
from .families import Family, supported_family
from .lora import Adapter, attach, fuse, read_adapter, require_fit
from .lora_file import read_lora_file
from .model import TITLES, Model, Part, PartName

if TYPE_CHECKING:
    import torch

# What a part must have in common with the one it replaces.
_ALIKE: dict[PartName, tuple[str, ...]] = {
    "unet": ("in_channels", "out_channels", "cross_attention_dim", "addition_embed_type", "class_embed_type"),
    "transformer": (
        *("in_channels", "out_channels", "patch_size"),
        *("joint_attention_dim", "pooled_projection_dim", "caption_channels", "cap_feat_dim", "guidance_embeds"),
    ),
    "vae": ("latent_channels", "z_dim", "in_channels"),
}


def load_root(model: Model, **parts: Any) -> Any:
    """The root pipeline of a model, with some components replaced; None leaves one out.

    Raises:
        PrefloopError: if it cannot be loaded; the message says how to fetch it.
    """
    from diffusers import DiffusionPipeline

    root = model.root
    quiet_libraries()
    _refuse_incomplete(root, parts)
    parts = dict.fromkeys(root.settings.left_out) | parts
    with named_errors("model", root.source, root.name):
        return DiffusionPipeline.from_pretrained(root.source, use_safetensors=True, **parts, **root.loading())


def _refuse_incomplete(root: Model, parts: Mapping[str, Any]) -> None:
    """
    Raises:
        IntegrityError: if the folder of a component is missing or empty; transformers would make up a tokenizer.
    """
    folder = Path(root.source)
    if not folder.is_dir():
        return
    for name, value in read_settings(folder / INDEX).items():
        component = isinstance(value, list) and value != [None, None] and not name.startswith("_")
        if component and name not in parts and not any((folder / name).glob("*")):
            raise IntegrityError(
                f"cannot load the model {root.name}: its {name} is missing; fetch or save the model again"
            )


def load_component(model: Model) -> Any:
    """The U-Net or transformer of a model in float32, with the LoRAs it was trained on fused in order, its own last.

    Raises:
        PrefloopError: if a part of it cannot be loaded.
        IntegrityError: if the parts do not fit together.
    """
    made = model.composition
    return _component(made.root, made.component, made.loras)


def _component(root: Model, replacement: Part | None, loras: tuple[str, ...]) -> Any:
    import diffusers

    adapters = [None if Path(lora).is_file() else read_adapter(lora) for lora in loras]
    family = supported_family(root)
    model_class: Any = getattr(diffusers, family.model_class)
    if replacement is None:
        with named_errors("model", root.source, root.name):
            component = model_class.from_pretrained(
                root.source, subfolder=family.component, use_safetensors=True, **root.loading()
            )
    else:
        with named_errors(TITLES[family.component], replacement.source, replacement.source):
            component = model_class.from_pretrained(replacement.source, use_safetensors=True, **replacement.loading())
        _require_alike(family.component, component.config, root, replacement)
    component = component.float()
    for lora, read in zip(loras, adapters, strict=True):
        adapter = read or read_lora_file(Path(lora), component, family.component)
        _require_component(adapter, family, root)
        fuse(component, adapter)
    return component


def component_shape(model: Model) -> Any:
    """The U-Net or transformer of a model without weights, on torch's meta device: made in a second, from settings alone.

    Raises:
        UsageError, IntegrityError: if the parts do not fit together.
    """
    import diffusers
    import torch

    made = model.composition
    family = supported_family(made.root)
    model_class: Any = getattr(diffusers, family.model_class)
    config = made.root.settings.parts[family.component]
    if (replacement := made.component) is not None:
        with named_errors(TITLES[family.component], replacement.source, replacement.source):
            config = model_class.load_config(replacement.source, **replacement.loading())
        _require_alike(family.component, config, made.root, replacement)
    with torch.device("meta"):
        component = model_class.from_config(config)
    for lora in made.loras:
        is_file = Path(lora).is_file()
        adapter = read_lora_file(Path(lora), component, family.component) if is_file else read_adapter(lora)
        _require_component(adapter, family, made.root)
        require_fit(component, adapter, convolutions=True)
    return component


def load_vae(model: Model) -> Any:
    """The VAE of a model in float32.

    Raises:
        PrefloopError: if it cannot be loaded.
    """
    import diffusers

    made = model.composition
    vae_class: Any = getattr(diffusers, supported_family(made.root).vae_class)
    if made.vae is None:
        with named_errors("model", made.root.source, made.root.name):
            vae = vae_class.from_pretrained(
                made.root.source, subfolder="vae", use_safetensors=True, **made.root.loading()
            )
        return vae.float()
    with named_errors("VAE", made.vae.source, made.vae.source):
        vae = vae_class.from_pretrained(made.vae.source, use_safetensors=True, **made.vae.loading())
    _require_alike("vae", vae.config, made.root, made.vae)
    return vae.float()


def load_pipeline(model: Model, dtype: "torch.dtype", **parts: Any) -> Any:
    """The pipeline of a model: what it was trained on fused in float32, then its own LoRA attached, if it is one.

    Args:
        parts: more arguments for the root pipeline, as `load_root` takes them.

    Raises:
        PrefloopError: if a part of it cannot be loaded.
        IntegrityError: if the parts do not fit together.
    """
    made = model.composition
    # a LoRA of another program may be on layers that peft cannot put one beside
    n_fused = len(made.loras) if made.loras and Path(made.loras[-1]).is_file() else len(made.loras) - 1
    earlier, last = made.loras[: max(0, n_fused)], made.loras[max(0, n_fused) :]
    adapters = [read_adapter(folder) for folder in last]
    if made.component is not None or earlier:
        parts[supported_family(made.root).component] = _component(made.root, made.component, earlier).to(dtype)
    if made.vae is not None:
        parts["vae"] = load_vae(model).to(dtype)
    pipeline = load_root(model, dtype=dtype, **parts)
    for adapter in adapters:
        family = supported_family(made.root)
        _require_component(adapter, family, made.root)
        attach(getattr(pipeline, family.component), adapter)
    return pipeline


def _require_component(adapter: Adapter, family: Family, root: Model) -> None:
    """
    Raises:
        IntegrityError: if the LoRA is for another kind of model.
    """
    if adapter.component != family.component:
        raise IntegrityError(
            f"{adapter.source} is a LoRA for a {TITLES[adapter.component]}, but {root.name}, a {family.pipeline_class}, "
            f"has a {TITLES[family.component]}"
        )


def _require_alike(part: PartName, config: Mapping[str, Any], root: Model, replacement: Part) -> None:
    """
    Raises:
        UsageError: if the part cannot replace the pipeline's own.
    """
    own = root.settings.parts[part]
    for name in _ALIKE[part]:
        if name in own and config.get(name) != own[name]:
            raise UsageError(
                f"{replacement.source} does not fit {root.name}: its {name} is {config.get(name)}, not {own[name]}"
            )


@contextmanager
def named_errors(what: str, source: str, name: str) -> Iterator[None]:
    """Turn whatever diffusers and transformers raise in the block into one line that names the thing and the cure."""
    import torch

    their_log = logging.getLogger("diffusers")
    level = their_log.level
    their_log.setLevel(logging.CRITICAL)  # it logs an error that it then raises: one line is enough
    try:
        yield
    except (PrefloopError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        if Path(source).is_dir():
            line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            raise IntegrityError(f"cannot load the {what} {name}: {line}") from error
        raise cannot_fetch(what, name, source, error) from error
    finally:
        their_log.setLevel(level)
