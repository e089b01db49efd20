"""What replaces a part of a model: a U-Net, transformer or VAE of its own, or the file of a LoRA."""

from pathlib import Path

from ..core.errors import PrefloopError, UsageError
from ..core.hashing import fingerprint, sha256
from ..core.hub import HUB_ID, hub_id
from ..core.ids import canonical, content_id
from .config_files import refuse_code
from .model import TITLES, Model, Part, PartName
from .names import is_local

_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


def with_parts(model: Model, init_from: str | None = None, vae: str | None = None) -> Model:
    """The model with another U-Net or transformer or with a LoRA, or another VAE; the model itself if none is named.

    Args:
        init_from: a folder, a hub id, or the file of a LoRA.
    """
    lora = None if init_from is None else find_lora_file(init_from)
    return with_found_parts(
        model,
        None if init_from is None or lora is not None else find_part(init_from, model.settings.component),
        None if vae is None else find_part(vae, "vae"),
        lora,
    )


def with_found_parts(model: Model, component: Part | None, vae: Part | None, lora: Part | None = None) -> Model:
    if component is None and vae is None and lora is None:
        return model
    named: tuple[tuple[PartName, Part | None], ...] = ((model.settings.component, component), ("vae", vae))
    parts: dict[PartName, Part] = {name: part for name, part in named if part is not None}
    ids = {name: part.part_id.hex for name, part in parts.items()}
    ids |= {} if lora is None else {"lora": lora.part_id.hex}
    identity = content_id(canonical({"base": model.model_id.hex} | ids).encode())
    titles = [f"{TITLES[name]} {part.source}" for name, part in parts.items()]
    described = ", ".join(titles + ([] if lora is None else [f"the LoRA {lora.source}"]))
    name = f"{model.name} with {described}"
    return Model(name, name, identity, "parts", model, component, vae, lora)


def find_part(name: str, part: PartName) -> Part:
    """A U-Net, transformer or VAE by the name of its folder, of a pipeline's folder, or of a repository on the hub.

    Raises:
        PrefloopError: if there is none.
    """
    if not is_local(name, TITLES[part]):
        return Part(name, hub_subfolder(part), hub_id(name, None, part=part))
    folder = Path(name).expanduser()
    refuse_code(folder)
    for candidate, subfolder in ((folder, None), (folder / part, part)):
        if (candidate / "config.json").is_file():
            return Part(str(folder), subfolder, fingerprint(candidate))
    raise UsageError(f"{name} contains no {TITLES[part]}: it has neither config.json nor {part}/config.json")


def hub_subfolder(part: PartName) -> str | None:
    """A VAE usually has a repository of its own; a U-Net or a transformer is in a pipeline's."""
    return None if part == "vae" else part


def find_lora_file(name: str) -> Part | None:
    """The LoRA in a file; None if the name is not that of a file.

    Raises:
        UsageError: if it is not a safetensors file.
        PrefloopError: if it does not exist.
    """
    path = Path(name).expanduser()
    suffix = path.suffix.lower()
    try:
        exists = "\0" not in name and path.is_file()
    except OSError:
        exists = False
    if suffix in _PICKLES and (exists or not HUB_ID.fullmatch(name)):
        raise UsageError(
            f"{name} is a pickle, which can run code when it is loaded; get or save the LoRA as a .safetensors file"
        )
    if suffix == ".safetensors" and not exists and not path.is_dir():
        raise PrefloopError(f"cannot find the LoRA {name}: no such file")
    if not exists:
        return None
    if suffix != ".safetensors":
        raise UsageError(f"{name} is a file, but not a .safetensors file; name a LoRA's file or the folder of a model")
    return lora_file(path)


def lora_file(path: Path) -> Part:
    return Part(str(path), None, content_id(sha256(path).encode()))
