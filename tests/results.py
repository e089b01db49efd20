"""A LoRA folder as train writes it, created without training, and ways to change it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from prefloop.core.hashing import RESULT_FILE, digests
from prefloop.models.lineage import lineage
from prefloop.models.loading import load_component
from prefloop.models.names import LORA_FILE
from prefloop.models.pipelines import load_pipeline
from prefloop.models.resolve import find_model
from prefloop.store import IntegrityError
from safetensors.torch import load_file, save_file


def lora_on(base_folder: Path, folder: Path) -> Path:
    """A LoRA of random weights on a pipeline, with its prefloop.json."""
    base = find_model(str(base_folder))
    _write_lora(folder, load_component(base))
    record = {"output": "lora", "base_model": base.name, "trained_on": lineage(base, folder), "files": digests(folder)}
    (folder / RESULT_FILE).write_text(json.dumps(record))
    return folder


def _write_lora(folder: Path, unet: Any) -> None:
    from diffusers import StableDiffusionPipeline
    from peft.utils import get_peft_model_state_dict

    unet.add_adapter(LoraConfig(r=2, lora_alpha=4, init_lora_weights="gaussian", target_modules=["to_q", "to_k"]))
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                parameter += 0.3
    settings = unet.peft_config["default"].to_dict()
    layers: dict[str, Any] = get_peft_model_state_dict(unet)
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, unet_lora_adapter_metadata=settings)


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / RESULT_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path | str) -> str:
    """The one-line error with which a model is refused."""
    with pytest.raises(IntegrityError) as caught:
        load_pipeline(find_model(str(folder)), "cpu", torch.float32)
    (line,) = str(caught.value).splitlines()
    assert caught.value.exit_code == 5
    return line


def respell(folder: Path, changes: dict[str, Any], metadata: object = None) -> None:
    """Rewrite the LoRA with other settings in its header or other layers, as if train had written them."""
    path = folder / LORA_FILE
    state = load_file(path)
    for name in [name for name in changes if changes[name] is None]:
        del state[name]
    state |= {name: value for name, value in changes.items() if value is not None}
    header = {} if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)}
    save_file(state, path, header | {"format": "pt"})
    rewrite(folder, files=digests(folder))


def checkpoint_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """What a checkpoint of a LoRA or of a whole U-Net resumes from, by the names of the U-Net's parameters."""
    lora = checkpoint / "trainable.safetensors"
    return load_file(lora if lora.exists() else checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
