"""Load what a model is put together from: the one way for drawing, training and exporting alike."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import IntegrityError, PrefloopError, UsageError
from ..core.hub import cannot_fetch
from ..core.progress import quiet_libraries
from .config_files import INDEX, read_settings
from .lora import attach, fuse, read_adapter
from .model import Model, Part

if TYPE_CHECKING:
    import torch

# What must be alike in a U-Net or a VAE that stands in for that of a pipeline.
_ALIKE = {
    "unet": ("in_channels", "out_channels", "cross_attention_dim", "addition_embed_type", "class_embed_type"),
    "vae": ("latent_channels", "in_channels"),
}


def load_root(model: Model, **parts: Any) -> Any:
    """The pipeline at the bottom of a model, with some components given; None leaves one out.

    Raises:
        PrefloopError: where it cannot be loaded; the message says how to fetch it.
    """
    from diffusers import DiffusionPipeline

    root = model.root
    quiet_libraries()
    _refuse_incomplete(root, parts)
    with named_errors("model", root.source, root.name):
        return DiffusionPipeline.from_pretrained(root.source, use_safetensors=True, **parts, **root.loading())


def _refuse_incomplete(root: Model, parts: Mapping[str, Any]) -> None:
    """
    Raises:
        IntegrityError: where the folder of a component is missing or empty; transformers makes up a tokenizer then.
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


def load_unet(model: Model) -> Any:
    """The U-Net of a model in float32, with the LoRAs it was trained on fused in order, its own last.

    Raises:
        PrefloopError: where a part of it cannot be loaded.
        IntegrityError: where the parts do not fit together.
    """
    made = model.composition
    return _unet(made.root, made.unet, made.loras)


def _unet(root: Model, instead: Part | None, loras: tuple[str, ...]) -> Any:
    from diffusers import UNet2DConditionModel

    adapters = [read_adapter(folder) for folder in loras]
    if instead is None:
        with named_errors("model", root.source, root.name):
            unet: Any = UNet2DConditionModel.from_pretrained(
                root.source, subfolder="unet", use_safetensors=True, **root.loading()
            )
    else:
        with named_errors("U-Net", instead.source, instead.source):
            unet = UNet2DConditionModel.from_pretrained(instead.source, use_safetensors=True, **instead.loading())
        _alike("unet", unet.config, UNet2DConditionModel, root, instead)
    unet = unet.float()
    for adapter in adapters:
        fuse(unet, adapter)
    return unet


def load_vae(model: Model) -> Any:
    """The VAE of a model in float32.

    Raises:
        PrefloopError: where it cannot be loaded.
    """
    from diffusers import AutoencoderKL

    made = model.composition
    if made.vae is None:
        with named_errors("model", made.root.source, made.root.name):
            vae: Any = AutoencoderKL.from_pretrained(
                made.root.source, subfolder="vae", use_safetensors=True, **made.root.loading()
            )
        return vae.float()
    with named_errors("VAE", made.vae.source, made.vae.source):
        vae = AutoencoderKL.from_pretrained(made.vae.source, use_safetensors=True, **made.vae.loading())
    _alike("vae", vae.config, AutoencoderKL, made.root, made.vae)
    return vae.float()


def load_pipeline(model: Model, dtype: "torch.dtype", **parts: Any) -> Any:
    """The pipeline of a model: what it was trained on fused in float32, then its own LoRA attached, if it is one.

    Args:
        parts: more arguments for the pipeline at the bottom, as `load_root` takes them.

    Raises:
        PrefloopError: where a part of it cannot be loaded.
        IntegrityError: where the parts do not fit together.
    """
    made = model.composition
    earlier, last = made.loras[:-1], made.loras[-1:]
    adapters = [read_adapter(folder) for folder in last]
    if made.unet is not None or earlier:
        parts["unet"] = _unet(made.root, made.unet, earlier).to(dtype)
    if made.vae is not None:
        parts["vae"] = load_vae(model).to(dtype)
    pipeline = load_root(model, dtype=dtype, **parts)
    for adapter in adapters:
        attach(pipeline.unet, adapter)
    return pipeline


def _alike(part: str, found: Mapping[str, Any], kind: Any, root: Model, instead: Part) -> None:
    """
    Raises:
        UsageError: where a part cannot stand in for the pipeline's own.
    """
    with named_errors("model", root.source, root.name):
        own = kind.load_config(root.source, subfolder=part, **root.loading())
    for name in _ALIKE[part]:
        if name in own and found.get(name) != own[name]:
            raise UsageError(
                f"{instead.source} does not fit {root.name}: its {name} is {found.get(name)}, not {own[name]}"
            )


@contextmanager
def named_errors(what: str, source: str, name: str) -> Iterator[None]:
    """Turn whatever diffusers and transformers raise in the block into one line that names the thing and the cure."""
    import torch

    theirs = logging.getLogger("diffusers")
    level = theirs.level
    theirs.setLevel(logging.CRITICAL)  # it logs an error that it then raises: one line is enough
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
        theirs.setLevel(level)
