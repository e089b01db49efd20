"""A model split over the processes: each keeps a part of every weight, gradient and moment (torch's FSDP2).

torch's `fully_shard` is called here, and not by accelerate: that ignores FSDP on CPUs, where two processes would train the
whole model each without a word.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(component: Any, device: torch.device, half: torch.dtype | None = None) -> None:
    """Split a float32 U-Net or transformer over all processes, in place and a block at a time: the device never holds all of it.

    Args:
        half: what blocks are gathered in and run in; None is float32. Weights are kept, and gradients summed, in float32.
    """
    # in-place changes of what a block returns would be lost; no family's model makes any, which a test of the gradients guards
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(\w+\) returned a view", UserWarning)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    # Inputs are left to autocast. A block gathered in half precision is what autocast would make of it, without a second copy.
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks(component):
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    policy = MixedPrecisionPolicy(half, torch.float32, output_dtype=torch.float32, cast_forward_inputs=False)
    # what is outside the blocks is put away after a forward pass too: a pass without gradients may come before a checkpoint
    fully_shard(component, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    if device.type == "cpu":
        for module in component.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)  # gloo cannot average
    if half is not None:  # as accelerate does with models it prepares
        component.forward = torch.autocast(device.type, half)(component.forward)


def blocks(component: nn.Module) -> list[nn.Module]:
    """The modules that are gathered whole, one after the other, inner ones first: those that diffusers keeps on one device."""
    names = set(getattr(component, "_no_split_modules", None) or ())
    modules = [module for module in component.modules() if type(module).__name__ in names]
    return [module for module in reversed(modules) if next(module.parameters(), None) is not None]


def gathered(state: Any, keep: bool) -> Any:
    """A state dict with whole tensors on the CPU. All processes must call this together.

    Args:
        keep: whether this process wants them; None is put in the place of each if not.
    """
    if isinstance(state, DTensor):
        whole: Tensor = state.full_tensor().detach()
        return whole.cpu() if keep else None
    if isinstance(state, Mapping):
        return {name: gathered(value, keep) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)([gathered(value, keep) for value in state])
    return state


def own_part(whole: Tensor, like: DTensor) -> DTensor:
    """This process's part of a tensor that every process has whole; split as `like`, on its device."""
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def own_parts(states: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """The states of a checkpoint with this process's parts of the optimizer's moments and of the EMA, in the parameters' order."""
    split = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
    optimizer = states["optimizer"]
    moments = {
        number: {
            name: own_part(value, split[number]) if isinstance(value, Tensor) and value.dim() else value
            for name, value in of_parameter.items()  # the number of steps is the same in all processes
        }
        for number, of_parameter in optimizer["state"].items()
    }
    states = states | {"optimizer": optimizer | {"state": moments}}
    if (ema := states.get("ema")) is not None:
        shadow = [own_part(value, like) for value, like in zip(ema["shadow_params"], split, strict=True)]
        states["ema"] = ema | {"shadow_params": shadow}
    return states


def whole_component(component: Any, model_class: Any, keep: bool) -> Any:
    """The component with whole weights on the CPU, as diffusers loads and saves it; None without `keep`. All processes must call
    this together. It holds no buffers but those that are saved."""
    state = gathered(component.state_dict(), keep)
    if not keep:
        return None
    with torch.device("meta"):
        whole = model_class.from_config(component.config)
    whole.to("meta").load_state_dict(state, assign=True)
    return whole.train(component.training)
