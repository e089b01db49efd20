"""Frozen linear layers whose weights are kept in 8 or 4 bits, for a LoRA that is trained beside them: QLoRA, arXiv 2305.14314.

Weights alone are quantized, by bitsandbytes: each product dequantizes its layer's weight to the precision of its input and forgets it, in
the backward pass too. bitsandbytes' own int8 layer also rounds the activations, by way of float16, in which transformers made for
bfloat16 overflow; here int8 is 255 evenly spaced values.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["int8", "nf4"]
KINDS: tuple[Kind, ...] = ("int8", "nf4")
BLOCK: dict[Kind, int] = {"int8": 256, "nf4": 64}
"""Consecutive weights that share a scale, their largest magnitude in float32."""
_BITS: dict[Kind, int] = {"int8": 8, "nf4": 4}


def quantized_bytes(kind: Kind, n: int) -> int:
    """Of n weights of one layer, with their scales."""
    return math.ceil(n * _BITS[kind] / 8) + 4 * math.ceil(n / BLOCK[kind])


def quantizable(component: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a U-Net's or transformer's repeated blocks, where nearly all weights of a transformer are.

    Those at its ends are left as they are: embeddings of time, text and patches, and the last projection. So are norms and
    convolutions, and a LoRA.
    """
    blocks = tuple(f"{name}." for name, module in component.named_modules() if isinstance(module, nn.ModuleList))
    return {
        name: layer
        for name, layer in component.named_modules()
        if type(layer) is nn.Linear and name.startswith(blocks) and not layer.weight.requires_grad
    }


def quantize(component: nn.Module, kind: Kind, device: torch.device | None = None) -> int:
    """Quantize a frozen float32 component in place; returns how many layers.

    Args:
        device: where it is done, and where the quantized weights stay; where they lie if not given.
    """
    names = list(quantizable(component))
    for name in names:  # of which each frees its float32 weight
        layer: Any = component.get_submodule(name)
        component.set_submodule(name, QuantizedLinear(layer, kind, device))
    return len(names)


class QuantizedLinear(nn.Linear):
    """A frozen linear layer; `weight` is dequantized on each access."""

    def __init__(self, linear: nn.Linear, kind: Kind, device: torch.device | None = None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.kind: Kind = kind
        codes, scales = _quantized(linear.weight.detach().to(device, torch.float32), kind)
        # not buffers, which processes that train together would send each other in every step
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = linear.bias
        self._levels = _levels(codes.device)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # a parameter of nn.Linear
        """(outputs, inputs) float32."""
        return self.dequantized(torch.float32)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        functions, shape = _functions(), torch.Size((self.out_features, self.in_features))
        state = functions.QuantState(self.scales, shape, dtype=dtype, blocksize=BLOCK[self.kind], quant_type=self.kind)
        if self.kind == "nf4":
            return functions.dequantize_4bit(self.codes, state)
        state.code = self._levels
        return functions.dequantize_blockwise(self.codes, state).view(shape)

    def forward(self, input: Tensor) -> Tensor:
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        output: Any = _Product.apply(input.to(dtype), self)
        return output

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLinear":
        scales = self.scales.data
        super()._apply(fn, recurse)
        self.scales.data = scales.to(self.scales.device)  # a change of dtype is not for them
        self._levels = _levels(self.codes.device)
        return self


class _Product(torch.autograd.Function):
    """x Wᵀ + b. torch's own would keep the dequantized weight of every layer for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:  # type: ignore[override]
        ctx.layer = layer
        return F.linear(x, layer.dequantized(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient @ ctx.layer.dequantized(gradient.dtype), None


def _quantized(weight: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Codes and scales of a float32 weight."""
    functions = _functions()
    if kind == "nf4":
        codes, state = functions.quantize_4bit(weight, blocksize=BLOCK[kind], quant_type=kind)
    else:
        codes, state = functions.quantize_blockwise(weight, code=_levels(weight.device), blocksize=BLOCK[kind])
    return codes, state.absmax


@cache
def _levels(device: torch.device) -> Tensor:
    """The values of int8 for bitsandbytes, which wants 256 in order: -1 to 1 in steps of 1/127, and 0 twice. Its own have closer
    steps near 0 and wider ones at the ends."""
    steps = torch.arange(1, 128, device=device) / 127
    return torch.cat([-steps.flip(0), torch.zeros(2, device=device), steps])


def _functions() -> Any:
    import bitsandbytes.functional as functions  # type: ignore[import-not-found]  # an extra

    return functions
