"""LoRAs in kohya's layout: loaded by diffusers, they denoise like the adapter they were written from."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from prefloop.core.errors import UsageError
from prefloop.models.families.unet import LORA_TARGETS
from prefloop.models.lora import Adapter, adapter_of, combined, fuse, lora_layers
from prefloop.train.export.kohya import refuse_nameless_layers, save_kohya
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

RANK = 4


def sd_unet(width: int) -> Any:
    shape: dict[str, Any] = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 16),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the tolerances below do not hold for every draw of weights
        return UNet2DConditionModel(**shape, **of_both(width))


def sdxl_unet(width: int) -> Any:
    """The blocks of SDXL, one transformer layer in each."""
    shape: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (16, 16, 16),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
    }
    return UNet2DConditionModel(**shape, **of_both(width))


def of_both(width: int) -> dict[str, Any]:
    return {
        "sample_size": 8,
        "layers_per_block": 2,
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        "cross_attention_dim": width,
    }


def pipeline(unet: Any) -> Any:
    """A pipeline with that U-Net."""
    text_config = CLIPTextConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    parts: dict[str, Any] = {
        "vae": AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
        "unet": unet,
        "text_encoder": CLIPTextModel(text_config),
        "tokenizer": None,
        "scheduler": DDIMScheduler(),
    }
    if unet.config.addition_embed_type is None:
        no_checker: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
        return StableDiffusionPipeline(**parts, **no_checker, requires_safety_checker=False)
    parts |= {"text_encoder_2": CLIPTextModelWithProjection(text_config), "tokenizer_2": None}
    return StableDiffusionXLPipeline(**parts, add_watermarker=False)


def with_adapter(unet: Any, alpha: float, rank: int = RANK) -> Any:
    """A copy of the U-Net with an adapter in which every layer has an effect."""
    adapted = copy.deepcopy(unet)
    adapted.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=LORA_TARGETS))  # type: ignore[arg-type]  # peft accepts a float
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3, generator=generator)
    return adapted


def both(unet: Any) -> tuple[Any, Adapter]:
    return unet, adapter_of(unet, "unet")


@torch.no_grad()
def denoised(unet: Any, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    latents, hidden = (torch.randn(size, generator=generator) for size in ((2, 4, 8, 8), (2, 5, width)))
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    more = {"text_embeds": torch.randn(2, 16, generator=generator), "time_ids": sizes}
    return unet.eval()(latents, torch.tensor([10, 700]), hidden, added_cond_kwargs=more).sample


def written(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("alpha", [4, 2, 2.5])
@pytest.mark.parametrize(("make", "width"), [(sd_unet, 768), (sdxl_unet, 2048)])
def test_the_lora_that_diffusers_loads_denoises_like_the_adapter(make: Any, width: int, alpha: float, tmp_path: Path):
    base = make(width)
    adapted = with_adapter(base, alpha)
    expected = denoised(adapted, width)
    save_kohya(*both(adapted), tmp_path / "kohya.safetensors")
    fresh = pipeline(copy.deepcopy(base))
    fresh.load_lora_weights(tmp_path, weight_name="kohya.safetensors")
    torch.testing.assert_close(denoised(fresh.unet, width), expected, atol=1e-5, rtol=0)
    # the output without the adapter, or with the rank as alpha, is far from it
    assert (denoised(base, width) - expected).abs().max() > 1e-2
    if alpha != RANK:
        assert (denoised(with_adapter(base, RANK), width) - expected).abs().max() > 1e-2


def test_every_layer_has_its_weights_and_alpha(tmp_path: Path):
    save_kohya(*both(with_adapter(sd_unet(768), 2.5)), tmp_path / "kohya.safetensors")
    state, _ = written(tmp_path / "kohya.safetensors")
    # 2 attention blocks down, 1 in the middle, 3 up; 2 attentions of 4 layers in each; 3 tensors of a layer
    assert len(state) == 6 * 8 * 3
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    assert state[f"{name}.lora_down.weight"].shape == (RANK, 768)
    assert state[f"{name}.lora_up.weight"].shape == (16, RANK)
    assert {value.item() for key, value in state.items() if key.endswith(".alpha")} == {2.5}
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0.alpha" in state


def test_sdxl_layers_have_the_names_of_the_original_unet(tmp_path: Path):
    save_kohya(*both(with_adapter(sdxl_unet(2048), 4)), tmp_path / "kohya.safetensors")
    blocks = {key.split("_transformer_blocks_")[0] for key in written(tmp_path / "kohya.safetensors")[0]}
    # SDXL's attention is in input blocks 4, 5, 7, 8 (0 is conv_in, 3 and 6 downsample), the middle, output blocks 0 to 5
    inputs = {f"lora_unet_input_blocks_{number}_1" for number in (4, 5, 7, 8)}
    assert blocks == inputs | {"lora_unet_middle_block_1"} | {f"lora_unet_output_blocks_{n}_1" for n in range(6)}


@pytest.mark.parametrize(
    ("make", "width", "v_prediction", "base", "v2"),
    [
        (sd_unet, 768, False, "sd_v1", "False"),
        (sd_unet, 1024, False, "sd_v2", "True"),
        (sd_unet, 1024, True, "sd_v2_v", "True"),
        (sdxl_unet, 2048, False, "sdxl_base_v1-0", "False"),
        (sdxl_unet, 2048, True, "sdxl_base_v1-0", "False"),
        (sd_unet, 16, False, None, None),
    ],
)
def test_the_metadata_match_those_of_sd_scripts(
    make: Any, width: int, v_prediction: bool, base: str | None, v2: str | None, tmp_path: Path
):
    save_kohya(*both(with_adapter(make(width), 2)), tmp_path / "kohya.safetensors", v_prediction=v_prediction)
    metadata = written(tmp_path / "kohya.safetensors")[1]
    assert metadata["ss_network_module"] == "networks.lora"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "2.0")
    assert (metadata.get("ss_base_model_version"), metadata.get("ss_v2")) == (base, v2)


def test_an_sdxl_layer_without_a_kohya_name_is_refused(tmp_path: Path):
    unet = sdxl_unet(16)
    unet.add_adapter(LoraConfig(r=RANK, target_modules=["conv1"]))
    with pytest.raises(ValueError, match="not in an attention block"):
        save_kohya(*both(unet), tmp_path / "kohya.safetensors")


def test_targets_without_a_kohya_name_are_refused_before_training():
    unet = sdxl_unet(16)
    refuse_nameless_layers(unet, lora_layers(unet, ["to_q", "proj_in", "ff.net.2"], LORA_TARGETS))
    with pytest.raises(UsageError, match=r"time_embedding.linear_1 is not in one; leave out --kohya"):
        refuse_nameless_layers(unet, lora_layers(unet, ["to_q", "linear_1"], LORA_TARGETS))
    other = sd_unet(16)
    refuse_nameless_layers(other, lora_layers(other, ["linear_1"], LORA_TARGETS))


def test_combined_loras_equal_the_loras_fused_one_after_the_other():
    base = sd_unet(768)
    first, second = adapter_of(with_adapter(base, 2.5), "unet"), adapter_of(with_adapter(base, 6, rank=2), "unet")
    every_third = dict(list(second.layers.items())[::3])
    second = Adapter(every_third, second.rank, second.alpha)
    fused_in_turn, fused_once, without_second = (copy.deepcopy(base) for _ in range(3))
    for adapter in (first, second):
        fuse(fused_in_turn, adapter)
    fuse(fused_once, combined([first, second]))
    fuse(without_second, first)
    assert (combined([first, second]).rank, combined([first, second]).alpha) == (6, 6.0)
    expected = denoised(fused_in_turn, 768)
    torch.testing.assert_close(denoised(fused_once, 768), expected, atol=1e-5, rtol=0)
    assert (denoised(without_second, 768) - expected).abs().max() > 1e-2
