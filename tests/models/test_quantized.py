"""Frozen linear layers in 8 and 4 bits: their error, their products and gradients, what they keep in memory, and which layers they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from prefloop.models.families import Family, family_of
from prefloop.models.loading import load_component
from prefloop.models.quantized import KINDS, Kind, QuantizedLinear, quantizable, quantize, quantized_bytes
from prefloop.models.resolve import find_model
from torch import Tensor, nn

pytest.importorskip("bitsandbytes")

NF4 = [-1.0, -0.6961928, -0.5250730, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
NF4 += [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
"""Appendix E of the QLoRA paper, arXiv 2305.14314."""
LEVELS: dict[Kind, Tensor] = {"int8": torch.arange(-127, 128) / 127, "nf4": torch.tensor(NF4)}
BLOCK: dict[Kind, int] = {"int8": 256, "nf4": 64}


def linear(inputs: int = 64, outputs: int = 48, *, bias: bool = True) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_becomes_the_nearest_level_of_its_block(kind: Kind):
    layer = linear()
    layer.weight[0] = 0.0  # nothing to scale by: the first block of nf4
    blocks = layer.weight.view(-1, BLOCK[kind])
    scale = blocks.abs().amax(dim=1, keepdim=True)
    nearest = (blocks[..., None] - scale[..., None] * LEVELS[kind]).abs().argmin(dim=-1)
    quantized = QuantizedLinear(layer, kind).weight
    error, least = (
        (quantized - layer.weight).abs(),
        (scale * LEVELS[kind][nearest]).view(48, 64).sub(layer.weight).abs(),
    )
    assert (error - least).abs().max() < 1e-5  # of two levels that are about equally near, either
    # at most half of the widest step: 1/127, and from -1 to -0.696
    assert error.max() <= scale.max() * {"int8": 0.5 / 127, "nf4": 0.152}[kind] + 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_that_are_held_are_those_that_are_estimated(kind: Kind):
    layer = QuantizedLinear(linear(1024, 8), kind)
    # 8192 weights and a scale of 4 bytes for each 256, or half a byte each and a scale for each 64
    expected = {"int8": 8192 + 4 * 32, "nf4": 4096 + 4 * 128}[kind]
    assert layer.codes.nbytes + layer.scales.nbytes == expected == quantized_bytes(kind, 8192)
    assert {name for name, _ in layer.named_parameters()} == {"codes", "scales", "bias"}
    assert not list(layer.buffers())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_products_and_gradients_are_those_of_the_dequantized_weight(kind: Kind, bias: bool):
    layer = QuantizedLinear(linear(bias=bias), kind)
    plain = linear(bias=bias)
    plain.weight.copy_(layer.weight)
    inputs = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gradients = []
    for module in (layer, plain):
        output = module(inputs)
        (gradient,) = torch.autograd.grad((output * torch.arange(48)).sum(), inputs)
        gradients += [output, gradient]
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[1], gradients[3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_dequantized_weight_is_kept_for_the_backward_pass(kind: Kind):
    layer, inputs, kept = (
        QuantizedLinear(linear(256, 256, bias=False), kind),
        torch.ones(1, 256, requires_grad=True),
        [],
    )
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.nbytes), lambda tensor: tensor):
        layer(inputs)
    assert sum(kept) < 256 * 256


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_of_the_product_and_not_of_the_scales(kind: Kind):
    layer, inputs = QuantizedLinear(linear(), kind), torch.ones(3, 64)
    before = layer.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(inputs).dtype == torch.bfloat16
    layer.to(torch.bfloat16)
    assert layer.bias.dtype == torch.bfloat16
    assert torch.equal(layer.weight, before)
    half = layer(inputs.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), linear()(inputs), rtol=0.05, atol=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_can_be_compiled_as_a_whole(kind: Kind):
    layer, inputs = QuantizedLinear(linear(), kind), torch.ones(3, 64, requires_grad=True)
    compiled: Any = torch.compile(layer, backend="eager", fullgraph=True)
    output = compiled(inputs)
    assert torch.equal(output, layer(inputs))
    (gradient,) = torch.autograd.grad(output.sum(), inputs)
    torch.testing.assert_close(gradient, layer.weight.sum(dim=0).expand(3, 64), rtol=1e-4, atol=1e-5)


ENDS: dict[str, set[str]] = {
    "sd15": {"time_embedding.linear_1", "time_embedding.linear_2"},
    "sdxl": {f"{name}.linear_{n}" for name in ("time_embedding", "add_embedding") for n in (1, 2)},
    "sd35": {f"time_text_embed.{part}.linear_{n}" for part in ("timestep_embedder", "text_embedder") for n in (1, 2)}
    | {"context_embedder", "norm_out.linear", "proj_out"},
    "z-image": {"t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.1", "all_x_embedder.2-1"}
    | {"all_final_layer.2-1.linear", "all_final_layer.2-1.adaLN_modulation.1"},
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Family]]:
    """A frozen U-Net or transformer, and its family."""
    root: Path = tmp_path_factory.mktemp("quantized")

    def load(kind: str) -> tuple[Any, Family]:
        folder = root / kind
        if not folder.exists():
            tiny.saved(kind, folder)
        return load_component(find_model(str(folder))).requires_grad_(False), family_of(find_model(str(folder)))

    return load


@pytest.mark.parametrize("kind", ENDS)
def test_the_linear_layers_of_all_blocks_are_quantized_and_those_at_the_ends_are_not(
    loaded: Callable[[str], tuple[Any, Family]], kind: str
):
    model, _ = loaded(kind)
    linears = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    assert quantize(model, "int8") == len(linears) - len(ENDS[kind])
    quantized = {name for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}
    assert linears - quantized == ENDS[kind]
    # nothing else has changed
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], before[name]) for name in after.keys() & before.keys())
    assert before.keys() - after.keys() == {f"{name}.weight" for name in quantized}


def test_a_layer_that_is_trained_is_not_quantized(loaded: Callable[[str], tuple[Any, Family]]):
    model, _ = loaded("sd15")
    name = next(iter(quantizable(model)))
    model.get_submodule(name).weight.requires_grad_(True)
    assert name not in quantizable(model)


FAMILIES = ["sd15", "sdxl", "sd35", "z-image", "flux2-klein", "flux1-dev", "qwen-image", "sana", "pixart-sigma"]


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_predicts_in_8_bits_nearly_what_it_predicts(
    loaded: Callable[[str], tuple[Any, Family]], kind: str
):
    model, family = loaded(kind)
    generator, side = torch.Generator().manual_seed(0), 32 // family.vae_factor
    noisy = torch.randn(2, family.latent_channels, side, side, generator=generator)
    prompts = {name: torch.randn(2, *shape, generator=generator) for name, shape in family.prompt_shapes().items()}
    conditions = family.conditions(prompts, torch.zeros(2, 4), (32, 32))
    predicted = []
    with torch.no_grad():
        for _ in range(2):
            predicted.append(family.predict(model, noisy, torch.full((2,), 500.0), conditions))
            quantize(model, "int8")
    assert 0 < (predicted[1] - predicted[0]).norm() / predicted[0].norm() < 0.01
