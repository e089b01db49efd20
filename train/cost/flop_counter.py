"""What a pass through a model costs, counted on meta tensors: floating-point operations, and bytes alive at once.

Meta tensors have a shape and no data, so the model may be of any size and nothing is computed.
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

Known = dict[tuple, Any]
_aten = torch.ops.aten
_ATTENTION_ON_CPU = _aten._scaled_dot_product_flash_attention_for_cpu  # in the registry of newer torch alone
_ATTENTION_BACKWARD = (
    _aten._scaled_dot_product_efficient_attention_backward,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward,
)


@dataclass(frozen=True)
class Pass:
    """Operations count 2 for a multiplication with its addition; bytes are those beside weights and gradients."""

    forward_flops: int
    backward_flops: int
    """With what gradient checkpointing computes again; 0 where no weight learns."""
    saved_bytes: int
    """Alive between forward and backward."""
    peak_bytes: int
    """Alive at once, at most."""


def checkpointed(half: torch.dtype | None) -> Callable:
    """What diffusers' enable_gradient_checkpointing takes, such that blocks are computed again as on a GPU."""
    # a mode around backward() would not be active inside it
    return partial(checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), AsOnGpu(half)))


def count_pass(model: nn.Module, forward: Callable[[], Tensor], half: torch.dtype | None, known: Known) -> Pass:
    """One forward pass and, where any weight of the model learns, one backward pass.

    Args:
        model: on the meta device; its gradients are allocated.
        forward: calls the model.
        half: what autocast casts to; None without autocast.
        known: what operations gave in earlier passes; share it between passes to save time.
    """
    weights = list(model.parameters())
    learns = any(weight.requires_grad for weight in weights)
    for weight in weights:
        weight.grad = torch.empty_like(weight) if weight.requires_grad else None
    with Meter(known) as meter, torch.set_grad_enabled(learns):
        with AsOnGpu(half, keep_casts=True):
            output = forward().float()
        forward_flops, saved_bytes = meter.flops, meter.live_bytes
        if learns:
            output.backward(torch.empty_like(output))
    return Pass(forward_flops, meter.flops - forward_flops, saved_bytes, meter.peak_bytes)


class Meter(TorchDispatchMode):
    """Counts the operations inside the block, and the bytes of what they made and is still alive."""

    def __init__(self, known: Known) -> None:
        super().__init__()
        self.flops = 0
        self.live_bytes = 0
        self.peak_bytes = 0
        self._alive: dict[int, weakref.ref] = {}
        self._known = known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, *kwargs.values())):
            self._track(tensor.untyped_storage(), 0)  # what no operation made was there before
        result = self._result(func, args, kwargs)
        packet = func._overloadpacket
        if packet in _ATTENTION_BACKWARD:
            # twice the forward pass; the registry adds what the fused kernel computes again
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
        """What the operation gives; asked once for the same shapes, since asking takes most of the time."""
        key = (func, _form(args), _form(tuple(kwargs.items())))
        if key in self._known:
            return _made(self._known[key])
        result = func(*args, **kwargs)
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, *kwargs.values()))}
        if all(tensor.is_meta and tensor.untyped_storage()._cdata not in given for tensor in _tensors(result)):
            self._known[key] = _form(result)
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


class _Form(NamedTuple):
    """A tensor without its identity."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


def _form(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Form(value.shape, value.stride(), value.dtype)
    return tuple(map(_form, value)) if isinstance(value, list | tuple) else value


def _made(form: Any) -> Any:
    if isinstance(form, _Form):
        return torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device="meta")
    return tuple(map(_made, form)) if isinstance(form, tuple) else form


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


_TO_HALF = {F.linear, F.conv2d, torch.conv2d, torch.matmul, torch.bmm, torch.baddbmm, F.scaled_dot_product_attention}
_TO_FLOAT = {F.group_norm, F.layer_norm, F.softmax, torch.softmax}


class AsOnGpu(TorchFunctionMode):
    """Fused attention and the casts of autocast as CUDA has them; for meta tensors torch has neither."""

    def __init__(self, half: torch.dtype | None, *, keep_casts: bool = False) -> None:
        super().__init__()
        self._half = half
        self._keep_casts = keep_casts
        self._casts: list[Tensor] = []

    def __exit__(self, *error: Any) -> None:
        self._casts.clear()
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        cast = self._halved if func in _TO_HALF else _floated if func in _TO_FLOAT else None
        if self._half is not None and cast is not None:
            args, kwargs = tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            query, key, value = args
            mask = kwargs.get("attn_mask")
            return _aten._scaled_dot_product_efficient_attention(query, key, value, mask, True)[0]
        return func(*args, **kwargs)

    def _halved(self, value: Any) -> Any:
        if not _is_floating(value):
            return value
        cast = value.to(self._half)
        # autocast keeps what it made of weights that learn until the forward pass ends
        if self._keep_casts and isinstance(value, nn.Parameter) and value.requires_grad:
            self._casts.append(cast)
        return cast


def _floated(value: Any) -> Any:
    return value.float() if _is_floating(value) else value


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
