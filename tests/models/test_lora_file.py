"""Training starts from a LoRA that another program made: base + LoRA as diffusers fuses it, then the new one on top."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from prefloop.core.errors import PrefloopError, UsageError
from prefloop.models.loading import load_component
from prefloop.models.lora import adapter_of
from prefloop.models.parts import with_parts
from prefloop.models.pipelines import load_pipeline
from prefloop.models.resolve import find_model
from prefloop.store import IntegrityError, PairStore
from prefloop.train import TrainConfig
from prefloop.train.cost.dry_run import dry_run
from prefloop.train.export.kohya import save_kohya
from prefloop.train.stage import train
from prefloop.train.trainer import Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor

TARGETS = ["to_q", "to_out.0", "proj_in", "ff.net.2"]  # proj_in of SD 1.5 is a convolution


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the blocks of SDXL, by which kohya's names number the layers."""
    pipeline = tiny.pipeline("sdxl")
    blocks: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (16, 16, 16),
        "layers_per_block": 2,
    }
    settings: Any = {name: value for name, value in pipeline.unet.config.items() if not name.startswith("_")}
    pipeline.unet = UNet2DConditionModel(**settings | blocks)
    folder = tmp_path_factory.mktemp("models") / "sdxl"
    pipeline.save_pretrained(folder)
    return folder


def unet_of(folder: Path) -> Any:
    return UNet2DConditionModel.from_pretrained(folder, subfolder="unet")


def adapted(folder: Path) -> Any:
    """The pipeline's U-Net with a LoRA of rank 2 and alpha 3 in which every layer has an effect."""
    unet = unet_of(folder)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=3, target_modules=TARGETS))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2, generator=generator)
    return unet


def kohya_of(unet: Any, path: Path) -> Path:
    adapter = adapter_of(unet, "unet")
    layers = {name: (a.flatten(1), b.flatten(1)) for name, (a, b) in adapter.layers.items()}
    save_kohya(unet, type(adapter)(layers, adapter.rank, adapter.alpha), path)
    return path


def diffusers_of(unet: Any, path: Path) -> Path:
    from peft.utils import get_peft_model_state_dict

    layers: Any = get_peft_model_state_dict(unet)
    settings = unet.peft_config["default"].to_dict()
    settings["target_modules"] = sorted(settings["target_modules"])
    StableDiffusionPipeline.save_lora_weights(
        path.parent, unet_lora_layers=layers, unet_lora_adapter_metadata=settings, weight_name=path.name
    )
    return path


def first_names_of(unet: Any, path: Path) -> Path:
    """The names that diffusers' first training scripts wrote, in which alpha is the rank."""
    state = load_file(diffusers_of(unet, path))
    state = {
        name.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): value * (1.5 if "lora_B" in name else 1)
        for name, value in state.items()
    }
    save_file(state, path)
    return path


def fused_by_diffusers(folder: Path, file: Path) -> dict[str, Tensor]:
    from diffusers import DiffusionPipeline

    pipeline: Any = DiffusionPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return pipeline.unet.state_dict()


@pytest.mark.slow(reason="trains and loads small models")
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("write", [kohya_of, diffusers_of, first_names_of])
def test_base_and_lora_are_what_diffusers_fuses(
    tmp_path: Path, tiny_pipeline: Path, sdxl: Path, kind: str, write: Callable[[Any, Path], Path]
):
    base = tiny_pipeline if kind == "sd15" else sdxl
    file = write(adapted(base), tmp_path / "mine.safetensors")
    loaded = load_component(with_parts(find_model(str(base)), init_from=str(file))).state_dict()
    expected, before = fused_by_diffusers(base, file), unet_of(base).state_dict()
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(loaded[name], value, atol=1e-6, rtol=0, msg=name)
    changed = {name for name in before if (loaded[name] - before[name]).abs().max() > 1e-3}
    layers = [
        name for name, _ in unet_of(base).named_modules() if any(f".{name}".endswith(f".{end}") for end in TARGETS)
    ]
    assert changed == {f"{name}.weight" for name in layers}


def test_layers_of_different_rank_and_alpha_keep_their_own(tmp_path: Path, tiny_pipeline: Path):
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    other = name.replace("to_q", "to_k")
    state = {}
    for number, (layer, rank, alpha) in enumerate(((name, 1, 4.0), (other, 3, 1.5))):
        kohya = f"lora_unet_{layer.replace('.', '_')}"
        state[f"{kohya}.lora_down.weight"] = torch.full((rank, 16), 0.1 + number)
        state[f"{kohya}.lora_up.weight"] = torch.ones(16, rank)
        state[f"{kohya}.alpha"] = torch.tensor(alpha)
    save_file(state, tmp_path / "two.safetensors")
    model = with_parts(find_model(str(tiny_pipeline)), init_from=str(tmp_path / "two.safetensors"))
    base, loaded = unet_of(tiny_pipeline), load_component(model)
    # every entry of B A is rank x 0.1 (or 1.1); times alpha / rank: 1 x 0.1 x 4, and 3 x 1.1 x 0.5
    for layer, gain in ((name, 0.4), (other, 1.65)):
        difference = loaded.get_submodule(layer).weight - base.get_submodule(layer).weight
        torch.testing.assert_close(difference, torch.full((16, 16), gain), atol=1e-5, rtol=0)


def trained(
    trainer: Callable[..., Trainer], folder: Path, file: Path, **settings: Any
) -> tuple[dict[str, Tensor], Path]:
    """The weights in memory at the end of a run, its LoRA fused, and its folder."""
    lora: dict[str, Any] = {
        "lora_rank": 3,
        "lora_alpha": 6.0,
        "learning_rate": 0.05,
        "loss": "sft",
        "max_train_steps": 1,
    }
    made = trainer(init_from=str(file), output_dir=str(folder), **(lora | settings))
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter += 0.1
    made.train("run")
    unet = made.policy.component
    weights = {
        name: module.get_base_layer().weight + module.get_delta_weight("default")
        if hasattr(module, "lora_A")
        else module.weight
        for name, module in unet.named_modules()
        if hasattr(module, "weight")
        and module.weight is not None
        and "lora_" not in name
        and not name.endswith("base_layer")
    }
    return {name: value.detach().clone() for name, value in weights.items()}, folder


@pytest.mark.slow(reason="trains and loads small models")
def test_a_result_on_a_lora_file_is_loaded_as_it_was_in_memory(
    tmp_path: Path, tiny_pipeline: Path, trainer: Callable[..., Trainer]
):
    (tmp_path / "files").mkdir()
    file = kohya_of(adapted(tiny_pipeline), tmp_path / "files" / "mine.safetensors")
    weights, folder = trained(trainer, tmp_path / "better", file, format="kohya")
    model = find_model(str(folder))
    loaded = load_component(model)
    for name, value in weights.items():
        torch.testing.assert_close(loaded.get_submodule(name).weight, value, atol=1e-5, rtol=0, msg=name)
    pipeline = load_pipeline(model, "cpu", torch.float32)
    settings: Any = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "pt"}

    def image(pipeline: Any) -> Tensor:
        return pipeline("a cat", **settings, generator=torch.Generator().manual_seed(0)).images

    expected = image(pipeline)
    # what it was trained on is the baseline of an evaluation: base and file
    assert model.trained_on is not None
    baseline = load_pipeline(model.trained_on, "cpu", torch.float32)
    fused = fused_by_diffusers(tiny_pipeline, file)
    for name, value in baseline.unet.state_dict().items():
        torch.testing.assert_close(value, fused[name], atol=1e-6, rtol=0, msg=name)
    # kohya's file has both LoRAs: ComfyUI needs no other
    whole: Any = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    assert (image(whole) - expected).abs().max() > 1e-2
    whole.load_lora_weights(str(folder), weight_name="better.safetensors")
    torch.testing.assert_close(image(whole), expected, atol=1e-3, rtol=0)
    card = (folder / "README.md").read_text()
    assert "combines the 2 LoRAs" in card
    code = card.split("```python\n")[1].split("```")[0].replace('folder = "."', f"folder = {str(folder)!r}")
    variables: dict[str, Any] = {}
    exec(code.split("image = ")[0], variables)
    torch.testing.assert_close(image(variables["pipeline"]), expected, atol=1e-3, rtol=0)
    record = json.loads((folder / "prefloop.json").read_text())["trained_on"]["init_from"]
    assert (record["file"], record["relative"]) == (str(file), "../files/mine.safetensors")
    moved = tmp_path / "moved"
    for part in ("files", "better"):
        shutil.move(tmp_path / part, moved / part)
    assert find_model(str(moved / "better")).model_id == model.model_id
    state = load_file(moved / "files" / "mine.safetensors")
    save_file({name: value * 2 for name, value in state.items()}, moved / "files" / "mine.safetensors")
    with pytest.raises(IntegrityError, match=r"was trained on .*mine.safetensors, which has changed since"):
        find_model(str(moved / "better"))
    (moved / "files" / "mine.safetensors").unlink()
    with pytest.raises(IntegrityError, match=r"needs .*mine.safetensors, which does not exist"):
        find_model(str(moved / "better"))


def test_other_bytes_in_the_file_are_another_model(tmp_path: Path, tiny_pipeline: Path):
    file = kohya_of(adapted(tiny_pipeline), tmp_path / "mine.safetensors")
    base = find_model(str(tiny_pipeline))
    first = with_parts(base, init_from=str(file))
    shutil.copy(file, tmp_path / "renamed.safetensors")
    assert with_parts(base, init_from=str(tmp_path / "renamed.safetensors")).model_id == first.model_id != base.model_id
    save_file({name: value * 2 for name, value in load_file(file).items()}, file)
    assert with_parts(base, init_from=str(file)).model_id != first.model_id


KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
PLAIN = {f"{KEY}.lora_down.weight": torch.ones(1, 16), f"{KEY}.lora_up.weight": torch.ones(16, 1)}
REFUSED = [
    (
        PLAIN | {"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(1)},
        "is a LoRA for the text encoder too",
    ),
    (
        PLAIN | {"text_encoder.text_model.lora_A.weight": torch.ones(1, 1)},
        "save_pretrained, and name that folder with --model",
    ),
    ({f"{KEY}.hada_w1_a": torch.ones(1, 1)}, "is not a plain LoRA: it contains .*hada_w1_a; LoHa, LoKr, DoRA"),
    (PLAIN | {f"{KEY}.dora_scale": torch.ones(1, 1)}, "is not a plain LoRA"),
    (
        {"model.diffusion_model.time_embed.0.weight": torch.ones(1, 1)},
        "is not a LoRA; a checkpoint in one file becomes a folder",
    ),
    (
        {f"{KEY}_x.lora_down.weight": torch.ones(1, 16)},
        "has no layer .*attn1_to_q_x; is the LoRA for another kind of model",
    ),
    ({f"{KEY}.lora_down.weight": torch.ones(1, 16)}, "attn1.to_q has another shape there"),
    (PLAIN | {f"{KEY}.lora_up.weight": torch.ones(8, 1)}, "attn1.to_q has another shape there"),
    (
        {
            "base_model.model.conv_in.lora_A.weight": torch.ones(1, 36, 1, 1),
            "base_model.model.conv_in.lora_B.weight": torch.ones(16, 1),
        },
        "needs adapter_config.json beside it",
    ),
    (PLAIN | {"other.lora_A.weight": torch.ones(1, 1)}, "LoRAs of a U-Net with kohya's, diffusers' or peft's names"),
]


@pytest.mark.parametrize(("state", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_what_is_not_a_plain_lora_for_the_model_is_refused(
    tmp_path: Path, tiny_pipeline: Path, state: dict[str, Tensor], message: str
):
    save_file(state, tmp_path / "mine.safetensors")
    with pytest.raises(UsageError, match=message):
        load_component(with_parts(find_model(str(tiny_pipeline)), init_from=str(tmp_path / "mine.safetensors")))


def test_a_file_that_cannot_be_used_is_refused_before_the_images_are_encoded(
    tmp_path: Path, tiny_pipeline: Path, labelled: PairStore
):
    save_file(REFUSED[0][0], tmp_path / "mine.safetensors")
    settings: dict[str, Any] = {"labelers": ("redder",), "model": str(tiny_pipeline), "resolution": 32, "cpu": True}
    config = TrainConfig(output_dir=str(tmp_path / "out"), init_from=str(tmp_path / "mine.safetensors"), **settings)
    for run in (train, dry_run):
        with pytest.raises(UsageError, match="is a LoRA for the text encoder too"):
            run(config, labelled)
    assert not (tmp_path / "out").exists()
    assert not list((labelled.path / "cache").iterdir())


def test_a_run_does_not_replace_the_folder_that_its_lora_is_in(
    tmp_path: Path, tiny_pipeline: Path, labelled: PairStore
):
    (tmp_path / "mine").mkdir()
    file = kohya_of(adapted(tiny_pipeline), tmp_path / "mine" / "mine.safetensors")
    settings: dict[str, Any] = {"labelers": ("redder",), "model": str(tiny_pipeline), "resolution": 32, "cpu": True}
    config = TrainConfig(output_dir=str(tmp_path / "mine"), init_from=str(file), **settings)
    with pytest.raises(UsageError, match=r"is, contains or lies in init-from .*, which this run reads"):
        train(config, labelled, overwrite=True)
    assert file.is_file()


@pytest.mark.parametrize("name", ["mine.pt", "mine.ckpt", "mine.bin"])
def test_a_pickle_is_refused_unread_with_the_cure(tmp_path: Path, tiny_pipeline: Path, name: str):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(
        UsageError, match=r"is a pickle, which can run code .*; get or save the LoRA as a \.safetensors file"
    ):
        with_parts(find_model(str(tiny_pipeline)), init_from=str(tmp_path / name))


def test_a_file_that_does_not_exist_or_is_not_safetensors_is_named(tmp_path: Path, tiny_pipeline: Path):
    base = find_model(str(tiny_pipeline))
    with pytest.raises(PrefloopError, match=r"cannot find the LoRA .*gone.safetensors: no such file"):
        with_parts(base, init_from=str(tmp_path / "gone.safetensors"))
    (tmp_path / "mine.zip").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"mine.zip is a file, but not a \.safetensors file"):
        with_parts(base, init_from=str(tmp_path / "mine.zip"))
    (tmp_path / "torn.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"torn.safetensors cannot be read as safetensors"):
        load_component(with_parts(base, init_from=str(tmp_path / "torn.safetensors")))
