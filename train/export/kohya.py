"""A U-Net LoRA in the layout of kohya's sd-scripts, which ComfyUI and AUTOMATIC1111's web UI read too.

diffusers converts the names, but always writes the rank as alpha; here it is the adapter's. SD 1 and 2 keep diffusers' names
of blocks, SDXL has those of the original U-Net (`input_blocks`), as sd-scripts has both (library/original_unet.py and
library/sdxl_original_unet.py there). Its newer versions turn diffusers' names for SDXL round when they load a network
(`convert_diffusers_to_sai_if_needed` in networks/lora.py); networks/sdxl_merge_lora.py passes them over.
"""

import re
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import save_file
from torch import Tensor

from ...models.lora import Adapter

# Width of the text embedding → the base as sd-scripts calls it.
_BASES = {768: "sd_v1", 1024: "sd_v2", 2048: "sdxl_base_v1-0"}
_ATTENTION = re.compile(r"lora_unet_(down|mid|up)_blocks?_(?:(\d+)_)?attentions_(\d+)_")


def save_kohya(unet: Any, adapter: Adapter, path: Path, *, v_prediction: bool = False) -> None:
    """Write a LoRA of a U-Net to a safetensors file.

    Args:
        unet: the U-Net it belongs to; its config decides the names.
        v_prediction: whether the base predicts velocity; the metadata of SD 1 and 2 say so.

    Raises:
        ValueError: where an SDXL adapter has layers outside of the attention blocks.
    """
    state: dict[str, Tensor] = convert_state_dict_to_kohya(
        {f"unet.{name}": weight for name, weight in adapter.state().items()}
    )
    if unet.config.addition_embed_type == "text_time":
        state = {_original_name(name, unet.config.layers_per_block): weight for name, weight in state.items()}
    alpha = torch.tensor(adapter.alpha)
    # each alpha in memory of its own: safetensors writes no tensor twice
    whole = {
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
    save_file(whole, path, metadata)


def _original_name(name: str, layers_per_block: int) -> str:
    """The name in SDXL's own U-Net, where blocks of one side are numbered through, and conv_in is the first input block."""
    found = _ATTENTION.match(name)
    if found is None:
        raise ValueError(f"{name} is in no attention block; nothing else of SDXL is named here")
    side, block, attention = found.groups()
    if side == "mid":
        original = "middle_block_1"
    else:
        number = int(block) * (layers_per_block + 1) + int(attention)
        original = f"input_blocks_{number + 1}_1" if side == "down" else f"output_blocks_{number}_1"
    return f"lora_unet_{original}_{name[found.end() :]}"
