"""Count the FLOPs and the memory of a pass through a model on meta tensors.

Meta tensors have a shape and no data, so a model of any size can be counted and nothing is computed.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

ResultMemo = dict[tuple, Any]
_aten = torch.ops.aten
_ATTENTION_ON_CPU = _aten._scaled_dot_product_flash_attention_for_cpu  # only newer versions of torch register it
_ATTENTION_BACKWARD = (
    _aten._scaled_dot_product_efficient_attention_backward,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward,
)


@dataclass(frozen=True)
class PassCost:
    """FLOPs count a multiply-add as 2; bytes exclude weights and gradients."""

    forward_flops: int
    backward_flops: int
    """Includes what gradient checkpointing recomputes; 0 if no weight is trained."""
    saved_bytes: int
    """Alive between the forward and the backward pass."""
    peak_bytes: int
    """Largest number alive at once."""


def checkpointing_function(autocast_dtype: torch.dtype | None) -> Callable:
    """Argument for diffusers' enable_gradient_checkpointing that recomputes blocks as a GPU would."""
    # a mode around backward() would not be active during recomputation
    return partial(checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), CudaSemantics(autocast_dtype)))


def count_pass(
    model: nn.Module, forward: Callable[[], Tensor], autocast_dtype: torch.dtype | None, memo: ResultMemo
) -> PassCost:
    """Count a forward pass and, if any weight of the model requires a gradient, a backward pass.

    Args:
        model: on the meta device; its gradients are allocated.
        forward: calls the model.
        autocast_dtype: what autocast casts to; None without autocast.
        memo: results of operations in earlier passes; share it between passes to save time.
    """
    weights = list(model.parameters())
    has_backward = any(weight.requires_grad for weight in weights)
    for weight in weights:
        weight.grad = torch.empty_like(weight) if weight.requires_grad else None
    with CostCounter(memo) as counter, torch.set_grad_enabled(has_backward):
        with CudaSemantics(autocast_dtype, keep_casts=True):
            output = forward().float()
        forward_flops, saved_bytes = counter.flops, counter.live_bytes
        if has_backward:
            output.backward(torch.empty_like(output))
    return PassCost(forward_flops, counter.flops - forward_flops, saved_bytes, counter.peak_bytes)


class CostCounter(TorchDispatchMode):
    """Counts the FLOPs of the operations inside the block, and the bytes of their results that are still alive."""

    def __init__(self, memo: ResultMemo) -> None:
        super().__init__()
        self.flops = 0
        self.live_bytes = 0
        self.peak_bytes = 0
        self._alive: dict[int, weakref.ref] = {}
        self._memo = memo

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, *kwargs.values())):
            self._track(tensor.untyped_storage(), 0)  # not made by an operation: it existed before the block
        result = self._result(func, args, kwargs)
        packet = func._overloadpacket
        if packet in _ATTENTION_BACKWARD:
            # twice the forward pass; the registry also counts what the fused kernel recomputes
            self.flops += 2 * sdpa_flop_count(*(tensor.shape for tensor in args[1:4]))
        elif packet is _ATTENTION_ON_CPU:
            self.flops += sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
        elif packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=result)
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            self._track(storage, storage.nbytes())
        return result

    def _result(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The operation's result; remembered by shapes, since shape inference takes most of the time."""
        key = (func, _spec(args), _spec(tuple(kwargs.items())))
        if key in self._memo:
            return _materialize(self._memo[key])
        result = func(*args, **kwargs)
        input_storages = {tensor.untyped_storage()._cdata for tensor in _tensors((args, *kwargs.values()))}
        if all(tensor.is_meta and tensor.untyped_storage()._cdata not in input_storages for tensor in _tensors(result)):
            self._memo[key] = _spec(result)
        return result

    def _track(self, storage: Any, n_bytes: int) -> None:
        key = storage._cdata
        if key in self._alive:
            return

        def freed(_: Any) -> None:
            del self._alive[key]
            self.live_bytes -= n_bytes

        self._alive[key] = weakref.ref(storage, freed)
        self.live_bytes += n_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


class _TensorSpec(NamedTuple):
    """A tensor's metadata."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


def _spec(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _TensorSpec(value.shape, value.stride(), value.dtype)
    return tuple(map(_spec, value)) if isinstance(value, list | tuple) else value


def _materialize(spec: Any) -> Any:
    if isinstance(spec, _TensorSpec):
        return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device="meta")
    return tuple(map(_materialize, spec)) if isinstance(spec, tuple) else spec


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


_HALF_OPS = {
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d, F.scaled_dot_product_attention),
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.baddbmm, torch.einsum),
}
_FLOAT_OPS = {F.group_norm, F.layer_norm, F.softmax, torch.softmax}


class CudaSemantics(TorchFunctionMode):
    """Fused attention and autocast as on CUDA, which torch does not apply to meta tensors."""

    def __init__(self, autocast_dtype: torch.dtype | None, *, keep_casts: bool = False) -> None:
        super().__init__()
        self._autocast_dtype = autocast_dtype
        self._keep_casts = keep_casts
        self._casts: list[Tensor] = []

    def __exit__(self, *error: Any) -> None:
        self._casts.clear()
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        cast = self._to_half if func in _HALF_OPS else _to_float if func in _FLOAT_OPS else None
        if self._autocast_dtype is not None and cast is not None:
            args, kwargs = tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _to_half(self, value: Any) -> Any:
        if not _is_floating(value):
            return value
        cast = value.to(self._autocast_dtype)
        # autocast keeps its copies of trained weights until the forward pass ends
        if self._keep_casts and isinstance(value, nn.Parameter) and value.requires_grad:
            self._casts.append(cast)
        return cast


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **_options: Any
) -> Tensor:
    """The kernel that keeps no matrix of tokens by tokens; tensors are (B, heads, tokens, head's width)."""
    if (repeats := query.shape[1] // key.shape[1]) > 1:  # grouped queries share keys and values
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    return _aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, True)[0]


def _to_float(value: Any) -> Any:
    return value.float() if _is_floating(value) else value


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
