"""The cost of training each family: counted on meta tensors as on real ones, and worked by hand for Stable Diffusion 3.5."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from cost_configs import DATA, SD35_LARGE, SD35_MEDIUM, SETTINGS, SPEED
from prefloop.core.errors import IntegrityError, UsageError
from prefloop.models.cost.components import text_encoder, trained_component, with_text_defaults
from prefloop.models.families import Family, family_of
from prefloop.models.families.checks import component_from
from prefloop.models.resolve import find_model
from prefloop.train import TrainConfig
from prefloop.train.batch import padded
from prefloop.train.cost.cost_model import OVERHEAD_BYTES, CostModel, CostSettings, cache_bytes, prompt_bytes
from prefloop.train.cost.published import sd35
from prefloop.train.encoders import load_text_encoders
from prefloop.train.policy import Policy
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

ATTENTION = tuple(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")) + tuple(
    f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
SIDE = 32


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **_options: Any) -> int:
    return sdpa_flop_count(query, key, value)


ON_CPU: Any = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
"""Newer versions of torch count it by themselves."""


@pytest.fixture(scope="module", params=["sd15", "sdxl", "sdxl-refiner", *tiny.FLOW_KINDS])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved(request.param, tmp_path_factory.mktemp("cost") / request.param)


def family_in(folder: Path) -> Family:
    return with_text_defaults(family_of(find_model(str(folder))))


def settings_for(family: Family, **changes: Any) -> CostSettings:
    targets = family.lora_targets if family.component == "unet" else None
    return replace(SETTINGS, **{"resolution": SIDE, "lora_targets": targets} | changes)


def test_flops_parameters_and_cache_are_those_of_the_real_tiny_model(saved: Path):
    family = family_in(saved)
    costs, settings = CostModel(family, DATA, SPEED), settings_for(family, lora_rank=4)
    config = TrainConfig(output_dir="unused", labelers=("someone",), lora_rank=4)
    policy = Policy(component_from(family.model_class, family.settings.parts[family.component]), config, family)
    component = costs.component(settings)
    assert component.n_lora_layers == len(policy.lora_layers) > 0
    assert component.n_trained == sum(parameter.numel() for parameter in policy.parameters())
    n = 2 * settings.train_batch_size
    prompts = {name: torch.ones(n, *shape) for name, shape in family.prompt_shapes().items()}
    conditions = family.conditions(prompts, torch.zeros(n, 4), (SIDE, SIDE))
    noisy = torch.ones(n, family.latent_channels, *[SIDE // family.vae_factor] * 2)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        predicted = family.predict(policy.component, noisy, torch.full((n,), 500.0), conditions)
    assert predicted.shape == noisy.shape
    assert costs.training_pass(settings).forward_flops == counter.get_total_flops()


def test_the_longest_prompt_in_the_cache_is_as_large_as_the_familys_own(saved: Path):
    family, model = family_in(saved), find_model(str(saved))
    encode = load_text_encoders(model, family, torch.device("cpu"))
    with torch.no_grad():
        rows = padded({name: list(rows) for name, rows in encode(["blue " * 600]).items()})
    n_values = sum(rows[name].numel() for name in family.prompt_tensors)
    assert prompt_bytes(family) == 2 * n_values
    assert cache_bytes(family, DATA, settings_for(family))["prompt embeddings"] == 41 * 2 * n_values


def test_half_precision_and_checkpointing_change_memory_and_not_the_forward_pass(saved: Path):
    family = family_in(saved)
    costs, settings = CostModel(family, DATA, SPEED), settings_for(family)
    plain = costs.training_pass(settings)
    half = costs.training_pass(replace(settings, mixed_precision="bf16", gradient_checkpointing=True))
    assert half.forward_flops == plain.forward_flops
    assert half.backward_flops > plain.backward_flops > plain.forward_flops
    assert half.saved_bytes < plain.saved_bytes
    assert min(costs.seconds(replace(settings, validation_pairs=1)).values()) > 0


def weights_of(family: Family) -> int:
    """Parameters of an SD3.5 transformer by the paper's figure 2: every linear layer, with its biases."""
    config = family.settings.parts["transformer"]
    layers, dual = config["num_layers"], len(config["dual_attention_layers"])
    width = 64 * config["num_attention_heads"]

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    attention = 4 * linear(width, width) + 2 * 64  # q, k, v and output; norms of q and k
    mlp = linear(width, 4 * width) + linear(4 * width, width)
    block = 2 * (attention + mlp + linear(width, 6 * width))  # image and text, each with 6 modulations
    added = attention + linear(width, 3 * width)  # of a block with two attentions, for the image
    last = linear(width, width) + mlp + linear(width, 4 * width)  # what the last block has not: its text ends there
    embedded = linear(2 * 2 * 16, width) + linear(256, width) + linear(2048, width) + 2 * linear(width, width)
    ends = linear(4096, width) + linear(width, 2 * width) + linear(width, 2 * 2 * 16)
    return layers * block + dual * added - last + embedded + ends


@pytest.mark.parametrize(
    ("family", "billions", "n_attention"), [(SD35_MEDIUM, 2.24, 24 * 8 - 1), (SD35_LARGE, 8.06, 38 * 8 - 1)]
)
def test_stable_diffusion_35_has_its_published_size(family: Family, billions: float, n_attention: int):
    component = trained_component(family, 32, ATTENTION)
    assert component.n_parameters == weights_of(family)
    assert component.n_parameters / 1e9 == pytest.approx(billions, abs=0.005)
    assert component.n_lora_layers == n_attention  # the last block has no output for text
    width = family.settings.parts["transformer"]["caption_projection_dim"]
    assert component.n_trained == n_attention * 32 * 2 * width


def test_the_lora_of_stable_diffusion_35_medium_is_on_attention_and_mlp():
    component = trained_component(SD35_MEDIUM, 32, None)
    # 191 and 13 x 4 of the second attentions, of 1536 x 1536; MLPs of 1536 x 6144 in 24 image and 23 text streams
    assert component.n_lora_layers == 191 + 52 + 2 * 47
    assert component.n_trained == 243 * 32 * 2 * 1536 + 94 * 32 * 5 * 1536


def test_the_prompts_of_stable_diffusion_35_take_2_7_megabytes_each():
    # 77 tokens of CLIP and 256 of T5, 4096 wide, and 2048 pooled values, of 2 bytes
    assert prompt_bytes(SD35_MEDIUM) == 2 * (333 * 4096 + 2048) == 2_732_032
    # 16 x 128 x 128 latents, mean and deviation
    assert cache_bytes(SD35_MEDIUM, DATA, replace(SETTINGS, resolution=1024)) == {
        "latents": 150 * 2 * 16 * 128 * 128 * 2,
        "prompt embeddings": 41 * 2_732_032,
    }


@pytest.mark.slow(reason="counts the operations of whole models")
@pytest.mark.parametrize("family", [SD35_MEDIUM, SD35_LARGE])
def test_the_forward_flops_of_stable_diffusion_35_are_those_of_its_tokens(family: Family):
    config = family.settings.parts["transformer"]
    layers, dual, width = config["num_layers"], len(config["dual_attention_layers"]), config["caption_projection_dim"]
    image, text = 64 * 64, 333  # tokens of 2 x 2 latents; of a prompt
    # multiply-adds: 12 width² per token and block for attention and MLP, 4 more in a second attention
    products = layers * 12 * width**2 * (image + text) + dual * 4 * width**2 * image
    products -= 9 * width**2 * text  # the last block only attends to the text
    products += layers * 2 * width * (image + text) ** 2 + dual * 2 * width * image**2  # queries by keys, by values
    settings = settings_for(family, lora_rank=1, lora_targets=("attn.to_q",), resolution=1024)
    settings = replace(settings, train_batch_size=1, images_per_pair=1)
    counted = CostModel(family, DATA, SPEED).training_pass(settings).forward_flops
    # embeddings and modulations, of one token an image, and the LoRA are less than a hundredth
    assert 2 * products < counted < 1.01 * 2 * products


def test_text_encoders_made_for_bfloat16_stay_in_it_on_a_gpu():
    # CLIP-L 123.65 and CLIP-G 694.66 million parameters with their projections, T5-XXL 4.762 billion
    text = 123_650_304 + 694_659_840 + 4_762_310_656
    family = sd35(layers=1, heads=24, dual=1, positions=384)
    # 41 prompts of 77 tokens for CLIP, 256 for T5
    none = replace(DATA, n_images=0)
    on_gpu, on_cpu = (CostModel(family, none, replace(SPEED, device=device)) for device in ("cuda", "cpu"))
    settings = settings_for(family, resolution=64, lora_rank=4)
    # the VAE, which is out of memory by then, is smaller
    assert on_gpu.memory(settings)["caching"] == {"encoders": 2 * text, "overhead": OVERHEAD_BYTES}
    assert on_cpu.memory(settings)["caching"] == {"encoders": 4 * text, "overhead": OVERHEAD_BYTES}
    flops = 41 * 2 * (77 * (text - 4_762_310_656) + 256 * 4_762_310_656)
    # at half of 4 TFLOP/s, or of 1 without bfloat16
    assert on_gpu.seconds(settings)["caching"] == pytest.approx(flops / 2e12)
    assert on_cpu.seconds(settings)["caching"] == pytest.approx(flops / 0.5e12)


def test_the_text_encoders_of_other_families_are_made_by_their_own_classes():
    qwen: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 100}
    qwen |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True}
    gemma = qwen | {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    # q, k, v and output with grouped keys; three matrices of the MLP
    block = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64
    for name, config, expected in (
        ("Qwen3Model", qwen, 100 * 32 + 2 * (block + 2 * 32 + 2 * 8) + 32),  # norms of block, q and k
        ("Qwen3ForCausalLM", qwen, 100 * 32 + 2 * (block + 2 * 32 + 2 * 8) + 32),  # its head is the embedding
        ("Gemma2Model", gemma, 100 * 32 + 2 * (block + 4 * 32) + 32),
    ):
        settings = replace(
            SD35_MEDIUM.settings,
            index=SD35_MEDIUM.settings.index | {"text_encoder": ["transformers", name]},
            parts=SD35_MEDIUM.settings.parts | {"text_encoder": config},
        )
        encoder = text_encoder(settings, "text_encoder")
        assert sum(parameter.numel() for parameter in encoder.parameters()) == expected, name
        assert all(parameter.is_meta for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("NoSuchModel", {"hidden_size": 32}, "transformers's NoSuchModel is not a model"),
        ("pipeline", {"hidden_size": 32}, "pipeline is not a model"),
        ("CLIPTextModel", {}, "its text_encoder is missing"),
        ("CLIPTextModel", {"hidden_size": "wide"}, "cannot be made from its settings"),
    ],
)
def test_a_text_encoder_that_cannot_be_made_is_named(name: str, config: dict, message: str):
    settings = replace(
        SD35_MEDIUM.settings,
        index=SD35_MEDIUM.settings.index | {"text_encoder": ["transformers", name]},
        parts=SD35_MEDIUM.settings.parts | {"text_encoder": config},
    )
    record: Any = SD35_MEDIUM
    with pytest.raises(IntegrityError, match=message) as raised:
        with_text_defaults(replace(record, settings=settings))
    assert "\n" not in str(raised.value)


def test_lora_targets_that_match_nothing_are_refused_by_the_estimate_too():
    with pytest.raises(UsageError, match=r"ends in to_everything; linear layers end in"):
        trained_component(SD35_MEDIUM, 16, ("to_everything",))
