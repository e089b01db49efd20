"""A U-Net LoRA in the layout of kohya's sd-scripts, which ComfyUI and AUTOMATIC1111's web UI read too.

diffusers converts the names but always writes the rank as alpha; this writes the adapter's own alpha. Like sd-scripts, SD 1
and 2 keep diffusers' block names and SDXL has those of the original U-Net, `input_blocks` (library/original_unet.py and
library/sdxl_original_unet.py). Newer versions of sd-scripts convert diffusers' names for SDXL when they load a network
(`convert_diffusers_to_sai_if_needed` in networks/lora.py); networks/sdxl_merge_lora.py ignores them.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import save_file
from torch import Tensor

from ...core.errors import UsageError
from ...models.lora import Adapter

# Width of the text embedding → sd-scripts' name of the base model.
_BASES = {768: "sd_v1", 1024: "sd_v2", 2048: "sdxl_base_v1-0"}
_ATTENTION = re.compile(r"lora_unet_(down|mid|up)_blocks?_(?:(\d+)_)?attentions_(\d+)_")


def refuse_nameless_layers(unet: Any, layers: Sequence[str]) -> None:
    """
    Args:
        layers: names in the U-Net of those that a LoRA is put on.

    Raises:
        UsageError: if this module has no kohya name for one of them.
    """
    if unet.config.addition_embed_type != "text_time":
        return
    nameless = [layer for layer in layers if not _ATTENTION.match(f"lora_unet_{layer.replace('.', '_')}")]
    if nameless:
        raise UsageError(
            f"kohya's format names only the attention blocks of SDXL, and {nameless[0]} is not in one; leave out --kohya, or "
            "choose other layers with --lora-target"
        )


def save_kohya(unet: Any, adapter: Adapter, path: Path, *, v_prediction: bool = False) -> None:
    """Write a LoRA of a U-Net to a safetensors file.

    Args:
        unet: the U-Net it belongs to; its config decides the names.
        v_prediction: whether the base predicts velocity, which the metadata of SD 1 and 2 state.

    Raises:
        ValueError: if an SDXL adapter has layers outside the attention blocks.
    """
    state: dict[str, Tensor] = convert_state_dict_to_kohya(
        {f"unet.{name}": weight for name, weight in _of_convolutions(unet, adapter).items()}
    )
    if unet.config.addition_embed_type == "text_time":
        state = {_original_name(name, unet.config.layers_per_block): weight for name, weight in state.items()}
    alpha = torch.tensor(adapter.alpha)
    # a copy of alpha for each layer: safetensors refuses tensors that share memory
    tensors = {
        name: alpha.clone() if name.endswith(".alpha") else weight.detach().cpu().contiguous()
        for name, weight in state.items()
    }
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(adapter.rank),
        "ss_network_alpha": str(adapter.alpha),
    }
    base = _BASES.get(unet.config.cross_attention_dim)
    if base is not None:
        metadata["ss_v2"] = str(base == "sd_v2")
        metadata["ss_base_model_version"] = f"{base}_v" if v_prediction and base != "sdxl_base_v1-0" else base
    save_file(tensors, path, metadata)


def _of_convolutions(unet: Any, adapter: Adapter) -> dict[str, Tensor]:
    """The weights by peft's names, those of convolutions with the shape of the layer's kernel."""
    state = adapter.state()
    for name in adapter.layers:
        kernel = unet.get_submodule(name).weight.shape[1:]
        if len(kernel) == 3:
            a, b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
            state |= {a: state[a].reshape(-1, *kernel), b: state[b][:, :, None, None]}
    return state


def _original_name(name: str, layers_per_block: int) -> str:
    """The name in SDXL's original U-Net, which numbers the blocks of each side consecutively; conv_in is input block 0."""
    match = _ATTENTION.match(name)
    if match is None:
        raise ValueError(f"{name} is not in an attention block; other layers of SDXL have no kohya name here")
    side, block, attention = match.groups()
    if side == "mid":
        original = "middle_block_1"
    else:
        number = int(block) * (layers_per_block + 1) + int(attention)
        original = f"input_blocks_{number + 1}_1" if side == "down" else f"output_blocks_{number}_1"
    return f"lora_unet_{original}_{name[match.end() :]}"
