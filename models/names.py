"""What a name can mean: a built-in model, something on this disk, or a repository on the hub; and the files of a LoRA."""

from pathlib import Path

from ..core.errors import PrefloopError
from ..core.hub import HUB_ID, commit_of

BUILT_IN = {"shapes": ("shapes", "weights", "pipeline"), "shapes-flow": ("shapes", "weights", "pipeline-flow")}
LORA_FILE = "pytorch_lora_weights.safetensors"
# of LoRAs that diffusers has no loader for
PEFT_LORA_FILE = "adapter_model.safetensors"
PEFT_SETTINGS = "adapter_config.json"
LORA_FILES = (LORA_FILE, PEFT_LORA_FILE, PEFT_SETTINGS)


def is_local(name: str, what: str, revision: str | None = None) -> bool:
    """Whether a name is that of something on this disk; False if it is a hub id.

    Raises:
        PrefloopError: if it is neither.
    """
    try:
        if "\0" not in name and Path(name).expanduser().exists():
            return True
    except (OSError, RuntimeError) as error:  # a name that is too long, or of an unknown user
        raise PrefloopError(f"cannot find the {what} {name[:100]!r}: {error}") from error
    known = f"neither {', '.join(BUILT_IN)} nor" if what == "model" else "not"
    if not HUB_ID.fullmatch(name):
        raise PrefloopError(f"cannot find the {what} {name!r}: no such folder, and {known} a hub id like owner/name")
    parent = Path(name).parent
    if parent.is_dir() and commit_of(name, revision) is None:
        raise PrefloopError(
            f"cannot find the {what} {name}: the folder {parent} exists, but {Path(name).name} is not in it; if you mean the "
            f"repository {name} on the hub, run `hf download {name}` first"
        )
    return False
