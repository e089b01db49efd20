"""What is particular to SANA and PixArt: masked prompts, SANA's instruction, PixArt's noise and its LoRAs in peft's layout."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import content
import diffusers
import pytest
import tiny
import torch
from PIL import Image
from prefloop.core.errors import Interrupted
from prefloop.core.hashing import digests
from prefloop.core.ids import noise_seed
from prefloop.generate.config import GenerateConfig
from prefloop.generate.sampler import ImageSampler
from prefloop.generate.stage import Generation
from prefloop.models.config_files import refuse_code
from prefloop.models.families import family_of, family_of_class, traits_of
from prefloop.models.lora import Adapter, lora_layers, read_adapter, write_peft_adapter
from prefloop.models.names import PEFT_LORA_FILE, PEFT_SETTINGS
from prefloop.models.pipelines import load_pipeline
from prefloop.models.resolve import find_model
from prefloop.store import IntegrityError, PairStore, UsageError
from prefloop.store.images import png_bytes
from prefloop.train import TrainConfig
from prefloop.train.batch import padded
from prefloop.train.stage import train
from prefloop.train.trainer import Trainer
from torch import Tensor

SIDE = 32
PROMPTS = ["a red circle", "", "a large green square above a small yellow circle"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny pipeline by its kind, saved once."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tiny.saved(kind, tmp_path_factory.mktemp("masked") / kind)
        return made[kind]

    return folder


@pytest.fixture
def few(store: PairStore) -> PairStore:
    """12 prompts with one pair each, the redder image chosen."""
    content.add_labeler(store, "redder")
    for number in range(12):
        prompt = content.add_prompt(store, f"circle {number}")
        images = []
        for red in (20, 220):
            row = store.write_image(png_bytes(Image.new("RGB", (SIDE, SIDE), (red, number, 40))), SIDE, SIDE)
            store.append("images", [row])
            images.append(row["image_id"])
        pair = content.add_pair(store, prompt, *images)
        content.add_label(store, pair, "redder", "a" if images[1] < images[0] else "b", margin=1.0)
    store.ingest()
    return store


def family_at(folder: Path) -> Any:
    return family_of(find_model(str(folder)))


def loaded(folder: Path) -> Any:
    return load_pipeline(find_model(str(folder)), "cpu", torch.float32)


def encoded(family: Any, pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
    with torch.no_grad():
        rows = family.encode(pipeline, prompts)
    return padded({name: list(tensors) for name, tensors in rows.items()})


def changed(folder: Path, copy: Path, part: str, **values: object) -> Any:
    """The unchecked family of a copy of a model whose part has other settings."""
    shutil.copytree(folder, copy)
    path = copy / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return find_model(str(copy))


def training(model: Path, output: Path, **more: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "max_train_steps": 1,
        "train_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_warmup_steps": 0,
    }
    settings |= {"labelers": ("redder",), "lora_rank": 2, "resolution": SIDE, "cpu": True}
    return TrainConfig(model=str(model), output_dir=str(output), **(settings | more))


def test_sanas_prompts_follow_the_pipelines_instruction_and_the_empty_one_is_its_negative_prompt(
    folders: Callable[[str], Path],
):
    import tiny_sana

    family, pipeline = family_at(folders("sana")), loaded(folders("sana"))
    prompts = list(PROMPTS)
    with torch.no_grad():
        rows = family.encode(pipeline, prompts)["prompt_embeds"]
        embeds, mask, negative, negative_mask = pipeline.encode_prompt(
            [PROMPTS[0], PROMPTS[2]],
            negative_prompt="",
            device="cpu",
            complex_human_instruction=tiny_sana.instruction().split("\n"),
        )
    assert prompts == PROMPTS
    assert embeds.shape[1] == 300
    torch.testing.assert_close(rows[0], embeds[0][mask[0].bool()], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rows[2], embeds[1][mask[1].bool()], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rows[1], negative[0][negative_mask[0].bool()], atol=1e-5, rtol=1e-4)
    # <bos> and the instruction's last token stay of it
    n_instruction = len(pipeline.tokenizer.encode(tiny_sana.instruction()))
    n_all = len(pipeline.tokenizer.encode(tiny_sana.instruction() + PROMPTS[0]))
    assert n_instruction > 10
    assert len(rows[0]) == n_all - n_instruction + 2
    assert len(rows[1]) == 1  # <bos>


@pytest.mark.parametrize(("kind", "n_tokens"), [("pixart-sigma", 300), ("pixart-alpha", 120)])
def test_pixarts_prompts_are_those_of_t5_without_padding(folders: Callable[[str], Path], kind: str, n_tokens: int):
    family, pipeline = family_at(folders(kind)), loaded(folders(kind))
    long = "a red circle " * 40
    with torch.no_grad():
        rows = family.encode(pipeline, ["Red & blue", "", long])["prompt_embeds"]
        ids = pipeline.tokenizer("red & blue", return_tensors="pt").input_ids  # the pipeline's own text is lower case
        expected = pipeline.text_encoder(ids)[0][0]
    torch.testing.assert_close(rows[0], expected, atol=1e-5, rtol=1e-4)
    assert len(rows[1]) == len(pipeline.tokenizer("").input_ids) >= 1
    assert len(rows[2]) == n_tokens
    assert family.prompt_shapes() == {"prompt_embeds": (n_tokens, 24)}


@pytest.mark.parametrize("kind", ["sana", "sana15", "pixart-sigma", "pixart-alpha"])
def test_padding_is_never_seen_and_would_matter(folders: Callable[[str], Path], kind: str):
    family, pipeline = family_at(folders(kind)), loaded(folders(kind))
    conditions = family.conditions(encoded(family, pipeline, PROMPTS), torch.zeros(3, 4), (SIDE, SIDE))
    noisy = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))

    def predicted(conditions: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return family.predict(pipeline.transformer, noisy, torch.tensor([100.0, 500.0, 900.0]), conditions)

    mask = conditions["prompt_embeds_mask"]
    other = conditions | {"prompt_embeds": conditions["prompt_embeds"].masked_fill(~mask[..., None], 3.0)}
    torch.testing.assert_close(predicted(other), predicted(conditions), atol=1e-6, rtol=1e-5)
    unmasked = {name: tensor for name, tensor in other.items() if name != "prompt_embeds_mask"}
    assert (predicted(unmasked) - predicted(conditions)).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["sana", "pixart-sigma", "pixart-alpha"])
def test_cached_prompts_guide_as_texts_do(folders: Callable[[str], Path], kind: str):
    family, pipeline = family_at(folders(kind)), loaded(folders(kind))

    def image(**prompts: Any) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        settings = {name: value for name, value in family.call_settings.items() if name != "max_sequence_length"}
        return pipeline(
            **prompts,
            **settings,
            num_inference_steps=2,
            guidance_scale=5.0,
            height=SIDE,
            width=SIDE,
            generator=generator,
            output_type="pt",
        ).images

    one, none = (encoded(family, pipeline, [prompt]) for prompt in (PROMPTS[0], ""))
    by_text = image(prompt=PROMPTS[0])  # the pipeline's own negative prompt is ""
    torch.testing.assert_close(image(**family.call_arguments(one, none)), by_text, atol=1e-5, rtol=1e-4)
    assert (image(**family.call_arguments(one, one)) - by_text).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["sana", "pixart-sigma"])
@pytest.mark.parametrize("negative", ["", "blurry"])
def test_generated_images_are_the_pipelines_own(folders: Callable[[str], Path], kind: str, negative: str):
    """Without a size, in the model's own; with the noise scheduler that the model comes with."""
    model = find_model(str(folders(kind)))
    config = GenerateConfig(
        model=model.name,
        prompts="unused.txt",
        num_inference_steps=2,
        guidance_scale=4.0,
        negative_prompt=negative,
        device="cpu",
    )
    sampler = ImageSampler(model, config)
    missing = [Generation(prompt, index, UUID(int=index)) for index, prompt in enumerate((PROMPTS[0], PROMPTS[2]))]
    ((_, images),) = sampler.batches(missing)
    generators = [torch.Generator().manual_seed(noise_seed(item.prompt, config.seed, item.index)) for item in missing]
    expected = loaded(folders(kind))(
        [item.prompt for item in missing],
        negative_prompt=[negative] * 2,
        num_inference_steps=2,
        guidance_scale=4.0,
        generator=generators,
        height=SIDE,
        width=SIDE,
        clean_caption=False,
        use_resolution_binning=False,
    ).images
    assert sampler.description["scheduler"] == "DPMSolverMultistepScheduler"
    assert [image.size for image in images] == [(SIDE, SIDE)] * 2
    assert [image.tobytes() for image in images] == [image.tobytes() for image in expected]


REAL: dict[str, tuple[dict[str, Any], int, int, float]] = {
    # the published configs where they differ from the class's defaults; linear layers hit, all of them, billions of parameters
    "SanaPipeline": ({"interpolation_scale": None}, 160, 166, 1.604),
    "PixArtSigmaPipeline": (
        {"caption_channels": 4096, "interpolation_scale": 2, "use_additional_conditions": False},
        280,
        286,
        0.611,
    ),
}


@pytest.mark.parametrize("pipeline_class", REAL)
def test_the_lora_is_on_every_linear_layer_of_the_real_models_blocks(pipeline_class: str):
    settings, n_hit, n_linear, billions = REAL[pipeline_class]
    family = family_of_class(pipeline_class)
    with torch.device("meta"):
        transformer = getattr(diffusers, family.model_class)(**settings)
    hit = lora_layers(transformer, None, family.lora_targets)
    linear = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    assert len(hit) == n_hit
    assert len(linear) == n_linear
    assert set(hit) == {name for name in linear if name.startswith("transformer_blocks.")}
    assert sum(parameter.numel() for parameter in transformer.parameters()) / 1e9 == pytest.approx(billions, rel=2e-3)


@pytest.mark.parametrize("kind", ["sana15", "pixart-alpha"])
def test_a_prediction_needs_no_values(folders: Callable[[str], Path], kind: str):
    family, transformer = family_at(folders(kind)), loaded(folders(kind)).transformer.to("meta")
    with torch.device("meta"):
        prompts = {name: torch.ones(2, *shape) for name, shape in family.prompt_shapes().items()}
        conditions = family.conditions(prompts, torch.zeros(2, 4), (SIDE, SIDE))
        predicted = family.predict(transformer, torch.ones(2, 4, 4, 4), torch.ones(2), conditions)
    assert predicted.is_meta
    assert predicted.shape == (2, 4, 4, 4)


def test_sana_is_trained_on_the_shift_that_it_was_made_with(folders: Callable[[str], Path], tmp_path: Path):
    noise: Any = family_at(folders("sana")).noise()
    assert noise.prediction_type == "flow"
    assert noise.sigma(0.5) == pytest.approx(0.75)  # 3 / 2 / (1 + 2 / 2)
    assert family_at(folders("sana")).noise(shift=1.0).sigma(0.5) == pytest.approx(0.5)
    other = changed(folders("sana"), tmp_path / "other", "scheduler", flow_shift=1.0)
    plain: Any = family_of(other).noise()
    assert plain.sigma(0.5) == pytest.approx(0.5)


def test_sanas_sides_are_multiples_of_32_and_its_latents_have_no_spread(folders: Callable[[str], Path]):
    family, pipeline = family_at(folders("sana")), loaded(folders("sana"))
    assert (family.resolution, family.vae_factor, family.sides_multiple, family.image_multiple) == (32, 8, 32, 32)
    traits = traits_of(find_model(str(folders("sana"))))
    assert (traits.latent_channels, traits.side) == (4, 32)
    pixels = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, std = family.latents(pipeline.vae, pixels)
        own = pipeline.vae.encode(pixels).latent
    torch.testing.assert_close(mean, 0.41407 * own)
    assert std.abs().max() == 0


def test_pixart_is_trained_as_the_diffusion_model_it_is(folders: Callable[[str], Path]):
    family = family_at(folders("pixart-sigma"))
    noise: Any = family.noise()
    assert noise.prediction_type == "epsilon"
    assert noise.timesteps == tuple(range(1000))
    # betas rise linearly from 0.0001 to 0.02
    kept = torch.cumprod(1 - torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64), 0)
    image, added = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), -3.0)
    noisy = noise.add(image, added, torch.tensor([400]))
    assert noisy.item() == pytest.approx(2 * float(kept[400]) ** 0.5 - 3 * float(1 - kept[400]) ** 0.5, rel=1e-5)
    assert noise.target(image, added, torch.tensor([400])).item() == -3
    with pytest.raises(UsageError, match="timestep-density and timestep-shift are for flow-matching models"):
        family.noise("uniform", None)


def test_pixart_alpha_is_told_the_size_of_the_image(folders: Callable[[str], Path]):
    prompts = {"prompt_embeds": torch.ones(2, 3, 24)}
    conditions = family_at(folders("pixart-alpha")).conditions(prompts, torch.zeros(2, 4), (32, 64))
    assert conditions["resolution"].tolist() == [[32, 64]] * 2
    assert conditions["aspect_ratio"].tolist() == [[0.5]] * 2  # height / width, as in the pipeline
    assert family_at(folders("pixart-sigma")).conditions(prompts, torch.zeros(2, 4), (32, 64)) == prompts


def test_models_that_their_pipeline_cannot_generate_with_are_refused(folders: Callable[[str], Path], tmp_path: Path):
    sprint = changed(folders("sana"), tmp_path / "sprint", "transformer", guidance_embeds=True)
    with pytest.raises(UsageError, match="takes the guidance scale as an input"):
        family_of(sprint)
    sized = changed(folders("pixart-sigma"), tmp_path / "sized", "transformer", use_additional_conditions=True)
    with pytest.raises(
        UsageError, match="use_additional_conditions, the size of the image, which a PixArtSigmaPipeline"
    ):
        family_of(sized)
    channels = changed(folders("pixart-sigma"), tmp_path / "channels", "transformer", out_channels=12)
    with pytest.raises(IntegrityError, match="out_channels of the transformer is 12, not 8 or 4"):
        family_of(channels)


def test_a_pixart_of_an_earlier_diffusers_is_the_same_model(folders: Callable[[str], Path], tmp_path: Path):
    """The published configs name the class Transformer2DModel."""
    model = changed(
        folders("pixart-sigma"),
        tmp_path / "early",
        "transformer",
        _class_name="Transformer2DModel",
        num_vector_embeds=None,
        use_linear_projection=False,
    )
    index = tmp_path / "early" / "model_index.json"
    parts = json.loads(index.read_text()) | {"transformer": ["diffusers", "Transformer2DModel"]}
    index.write_text(json.dumps(parts))
    transformer = loaded(tmp_path / "early").transformer
    assert type(transformer).__name__ == family_of(model).model_class == "PixArtTransformer2DModel"
    own = loaded(folders("pixart-sigma")).transformer.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in transformer.state_dict().items())


@pytest.fixture
def peft_lora(tmp_path: Path) -> Path:
    layers = {f"block.{name}": (torch.ones(2, 4), torch.ones(3, 2)) for name in ("to_q", "to_k")}
    folder = tmp_path / "lora"
    folder.mkdir()
    write_peft_adapter(folder, Adapter(layers, 2, 6.0, "transformer"), ["to_q", "to_k"])
    return folder


def test_a_lora_in_pefts_layout_is_read_with_its_scale(peft_lora: Path):
    refuse_code(peft_lora)
    adapter = read_adapter(peft_lora)
    assert (adapter.component, adapter.rank, adapter.alpha, adapter.scaling) == ("transformer", 2, 6.0, 3.0)
    assert adapter.layers.keys() == {"block.to_q", "block.to_k"}
    assert adapter.layers["block.to_q"][1].shape == (3, 2)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"use_dora": True}, "it was made with use_dora"),
        ({"alpha_pattern": {"to_q": 1}}, "it was made with alpha_pattern"),
        ({"bias": "all"}, "it was made with bias"),
        ({"r": 4}, "says rank 4"),
        ({"lora_alpha": "big"}, "alpha 'big'"),
        (None, "cannot be read, and holds the scale of the LoRA"),
    ],
)
def test_a_lora_in_pefts_layout_that_means_something_else_is_refused(
    peft_lora: Path, settings: dict[str, Any] | None, says: str
):
    path = peft_lora / PEFT_SETTINGS
    if settings is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(IntegrityError, match=says):
        read_adapter(peft_lora)


def test_an_adapter_in_a_part_that_is_loaded_is_refused(
    peft_lora: Path, folders: Callable[[str], Path], tmp_path: Path
):
    """transformers would load the model that its settings name, which is any on the hub."""
    model = Path(shutil.copytree(folders("pixart-sigma"), tmp_path / "model"))
    (model / "text_encoder" / "config.json").unlink()
    for name in (PEFT_LORA_FILE, PEFT_SETTINGS):
        shutil.copy(peft_lora / name, model / "text_encoder" / name)
    with pytest.raises(UsageError, match="adds an adapter to a part of the model"):
        refuse_code(model)
    shutil.rmtree(model / "text_encoder")
    for name in (PEFT_LORA_FILE, PEFT_SETTINGS):
        shutil.copy(peft_lora / name, model / name)
    with pytest.raises(UsageError, match="adds an adapter to a part of the model"):
        refuse_code(model)


@pytest.mark.slow(reason="trains and loads small models")
def test_the_cards_snippet_loads_a_pixart_lora_on_a_lora(
    folders: Callable[[str], Path], few: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first, second = tmp_path / "first", tmp_path / "second"
    train(training(folders("pixart-sigma"), first, lora_alpha=6.0), few)
    train(training(first, second), few)
    assert {PEFT_LORA_FILE, PEFT_SETTINGS} <= digests(second).keys()
    card = (second / "README.md").read_text()
    assert "A LoRA for a text-to-image pipeline, in peft's layout" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    arguments = "num_inference_steps=1, height=32, width=32, use_resolution_binning=False, clean_caption=False"
    monkeypatch.chdir(second)
    variables: dict[str, Any] = {}
    exec(code.replace('square")', f'square", {arguments})'), variables)

    def image(pipeline: Any) -> Tensor:
        settings = {"use_resolution_binning": False, "clean_caption": False, "height": SIDE, "width": SIDE}
        generator = torch.Generator().manual_seed(0)
        return pipeline("a circle", num_inference_steps=2, generator=generator, output_type="pt", **settings).images

    by_card = image(variables["pipeline"])
    torch.testing.assert_close(by_card, image(loaded(second)), atol=1e-5, rtol=1e-4)
    for other in (first, folders("pixart-sigma")):
        assert (by_card - image(loaded(other))).abs().max() > 1e-4


@pytest.mark.slow(reason="trains and loads small models")
@pytest.mark.parametrize(("kind", "rank"), [("sana", 2), ("sana15", 0), ("pixart-sigma", 2), ("pixart-alpha", 0)])
def test_a_bfloat16_run_resumes_to_the_bit_and_makes_samples(
    folders: Callable[[str], Path], few: PairStore, tmp_path: Path, kind: str, rank: int
):
    config = training(
        folders(kind),
        tmp_path / "whole",
        lora_rank=rank,
        max_train_steps=3,
        checkpointing_steps=1,
        sample_steps=3,
        n_samples=1,
        mixed_precision="bf16",
        gradient_checkpointing=True,
    )
    cut = replace(config, output_dir=str(tmp_path / "cut"))
    train(config, few)
    whole_step = Trainer.step

    def step(self: Trainer, micro_batches: Any = None) -> Any:
        if self.global_step == 1:
            self.stop.number = 15
        return whole_step(self, micro_batches)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "step", step)
        with pytest.raises(Interrupted):
            train(cut, few)
    train(cut, few)
    expected = {name: digest for name, digest in digests(tmp_path / "whole").items() if name.endswith(".safetensors")}
    resumed = digests(tmp_path / "cut")
    assert expected
    assert {name: resumed[name] for name in expected} == expected
    sample = Image.open(tmp_path / "whole" / "samples" / "step-000003.png")
    assert sample.size[0] == 2 * SIDE + 12  # two images between three borders of 4 pixels
