"""What is particular to Qwen-Image; what it shares with other families is in test_flow_families.py."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel, StableDiffusionPipeline
from prefloop.core.errors import IntegrityError, Interrupted
from prefloop.core.ids import noise_seed
from prefloop.core.signals import StopSignal
from prefloop.generate import GenerateConfig
from prefloop.generate.sampler import ImageSampler
from prefloop.generate.stage import Generation
from prefloop.models.families import family_of, family_of_class, known_family, qwen_image, traits_of
from prefloop.models.lora import lora_layers
from prefloop.models.pipelines import load_pipeline
from prefloop.models.resolve import find_model
from prefloop.models.text_to_image import call_arguments
from prefloop.store import PairStore
from prefloop.train import TrainConfig
from prefloop.train.batch import padded
from prefloop.train.cache import EMPTY_PROMPT_ID
from prefloop.train.checkpoint import sha256
from prefloop.train.monitor.samples import Samples
from prefloop.train.seeds import derived_seed
from prefloop.train.stage import train
from prefloop.train.trainer import Trainer

SIDE = 32
FAMILY = family_of_class("QwenImagePipeline")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved("qwen-image", tmp_path_factory.mktemp("qwen") / "model")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return load_pipeline(find_model(str(folder)), "cpu", torch.float32)


@pytest.fixture
def settings(config: TrainConfig, folder: Path) -> TrainConfig:
    return replace(config, model=str(folder), resolution=SIDE, lora_rank=2, mixed_precision="bf16")


def changed(folder: Path, target: Path, part: str, **settings: Any) -> str:
    """A copy of the model with other settings of a part."""
    path = Path(shutil.copytree(folder, target)) / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return str(target)


def test_a_lora_of_the_real_model_is_put_on_720_of_its_846_linear_layers():
    with torch.device("meta"):  # the class's defaults are the settings of Qwen-Image
        model = QwenImageTransformer2DModel()
    n_linear = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    assert n_linear == 846
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e9, 1) == 20.4
    # of each of 60 blocks 8 projections of attention, 2 of the image's MLP and 2 of the text's; no modulation
    names = lora_layers(model, None, FAMILY.lora_targets)
    assert len(names) == 60 * 12
    assert all(len(lora_layers(model, [ending], ())) == 60 for ending in FAMILY.lora_targets)
    assert not any("_mod." in name for name in names)


def test_the_steps_guidance_and_size_are_those_of_the_model_card_and_the_pipeline(folder: Path, pipeline: Any):
    family = family_of(find_model(str(folder)))
    assert (family.usual, family.distilled, family.dtype) == ((50, 4.0), False, "bfloat16")
    assert family.resolution == pipeline.default_sample_size * pipeline.vae_scale_factor == 1024
    assert (family.image_multiple, family.sides_multiple, family.latent_channels) == (16, 16, 4)
    assert family.prompt_shapes() == {"prompt_embeds": (512, 32)}


def test_guidance_is_true_cfg_scale_and_has_a_negative_prompt_unless_it_is_off():
    tokens = {"max_sequence_length": 512}
    for guidance, given, expected in (
        (4.0, None, {"true_cfg_scale": 4.0, "negative_prompt": " "}),
        (4.0, "blurry", {"true_cfg_scale": 4.0, "negative_prompt": "blurry"}),
        (1.0, None, {"true_cfg_scale": 1.0}),
        (0.0, None, {"true_cfg_scale": 0.0}),
    ):
        assert call_arguments(QwenImagePipeline, FAMILY, guidance, given) == expected | tokens
    # pipelines with guidance of their own are given no more than before
    other = family_of_class("StableDiffusionPipeline")
    assert call_arguments(StableDiffusionPipeline, other, 7.5, None) == {"guidance_scale": 7.5}


def test_prompts_are_encoded_one_by_one_as_the_pipeline_does_and_cut_as_its_call_does(folder: Path, pipeline: Any):
    family = family_of(find_model(str(folder)))
    # the tokens are letters: of a prompt all, and five that end its turn and begin the assistant's
    prompts = ["b" * n for n in range(1, qwen_image.ENCODED_AT_ONCE + 2)] + ["b" * 600, ""]
    before = list(prompts)
    with torch.no_grad():
        rows: Any = family.encode(pipeline, prompts)["prompt_embeds"]
        alone = [pipeline.encode_prompt([prompt], max_sequence_length=512)[0][0] for prompt in prompts]
    assert prompts == before
    assert [row.shape for row in rows] == [(min(len(prompt) + 5, 512), 32) for prompt in prompts]
    for row, expected in zip(rows, alone, strict=True):
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-4)


def test_padding_without_its_mask_would_change_the_prediction(folder: Path, pipeline: Any):
    family = family_of(find_model(str(folder)))
    with torch.no_grad():
        rows = padded({name: list(row) for name, row in family.encode(pipeline, ["b", "bbbb"]).items()})
    assert rows["prompt_embeds_mask"].sum(dim=1).tolist() == [1 + 5, 4 + 5]
    noisy, timesteps = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([500.0, 500.0])
    with torch.no_grad():
        masked = family.predict(pipeline.transformer, noisy, timesteps, rows)
        rows.pop("prompt_embeds_mask")
        unmasked = family.predict(pipeline.transformer, noisy, timesteps, rows)
    assert (masked - unmasked)[0].abs().max() > 1e-4
    torch.testing.assert_close(masked[1], unmasked[1])  # the longest is not padded


def test_an_image_that_is_not_square_has_its_rows_and_columns_where_the_pipeline_has_them(folder: Path, pipeline: Any):
    family = family_of(find_model(str(folder)))
    noise = torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(0))
    arguments: dict[str, Any] = {"num_inference_steps": 2, "true_cfg_scale": 1.0, "height": 32, "width": 64}
    tokens = pipeline("blue", latents=qwen_image.packed(noise), output_type="latent", **arguments).images
    with torch.no_grad():
        rows = padded({name: list(row) for name, row in family.encode(pipeline, ["blue"]).items()})
        expected = noise
        for sigma, end in pairwise(pipeline.scheduler.sigmas.tolist()):
            predicted = family.predict(pipeline.transformer, expected, torch.tensor([1000 * sigma]), rows)
            expected = expected + (end - sigma) * predicted
    torch.testing.assert_close(qwen_image.unpacked(tokens, 4, 8), expected, atol=1e-6, rtol=1e-5)


def test_a_prediction_costs_nothing_on_the_meta_device():
    with torch.device("meta"):
        model = QwenImageTransformer2DModel(num_layers=1)
        conditions = {"prompt_embeds": torch.empty(2, 512, 3584)}
        predicted = FAMILY.predict(model, torch.empty(2, 16, 128, 96), torch.empty(2), conditions)
    assert predicted.is_meta
    assert predicted.shape == (2, 16, 128, 96)


def test_packing_puts_a_patch_into_a_token_and_unpacking_takes_it_out():
    latents = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    tokens = qwen_image.packed(latents)
    assert tokens.shape == (2, 6, 12)
    # the second token is rows 0 and 1, columns 2 and 3 of each channel, 24 values apart
    assert tokens[0, 1].tolist() == [first + 24 * channel for channel in range(3) for first in (2, 3, 8, 9)]
    assert torch.equal(qwen_image.unpacked(tokens, 4, 6), latents)


def test_latents_are_standardized_by_channel(folder: Path, pipeline: Any):
    family = family_of(find_model(str(folder)))
    pixels = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mean, std = family.latents(pipeline.vae, pixels)
        posterior = pipeline.vae.encode(pixels[:, :, None]).latent_dist
    for channel, (center, width) in enumerate(zip([-0.8, 0.1, 1.5, 0.4], [2.8, 1.4, 3.2, 0.7], strict=True)):
        torch.testing.assert_close(mean[:, channel], (posterior.mean[:, channel, 0] - center) / width)
        torch.testing.assert_close(std[:, channel], posterior.std[:, channel, 0] / width)


def test_generating_is_the_pipelines_own_call_with_a_blank_negative_prompt(folder: Path, pipeline: Any):
    config = GenerateConfig(
        model=str(folder), prompts="-", num_inference_steps=2, guidance_scale=4.0, resolution=SIDE, device="cpu"
    )
    sampler = ImageSampler(find_model(str(folder)), config)
    prompts = ["a red circle", "blue"]
    batch: Any = [Generation(prompt, number, None) for number, prompt in enumerate(prompts)]  # type: ignore[arg-type]  # no id is needed
    ((_, images),) = sampler.batches(batch)

    def own(**more: Any) -> np.ndarray:
        generators = [torch.Generator().manual_seed(noise_seed(text, 0, n)) for n, text in enumerate(prompts)]
        made = pipeline(prompts, num_inference_steps=2, height=SIDE, width=SIDE, generator=generators, **more).images
        return np.stack([np.asarray(image) for image in made]).astype(int)

    generated = np.stack([np.asarray(image) for image in images]).astype(int)
    guided = own(true_cfg_scale=4.0, negative_prompt=[" ", " "])
    assert np.array_equal(generated, guided)
    assert np.abs(guided - own(true_cfg_scale=1.0)).max() > 2  # guidance does something
    assert sampler.n_truncated(["b" * 512, "b" * 513]) == 1


def test_samples_of_a_training_are_the_pipelines_own_images(settings: TrainConfig, labelled: PairStore, tmp_path: Path):
    """From cached embeddings, with guidance from the blank prompt, which also stands for dropped prompts."""
    settings = replace(settings, mixed_precision="no", n_samples=1)
    Path(settings.output_dir).mkdir()
    trainer = Trainer(settings, labelled, StopSignal())
    model = find_model(settings.model)
    samples = Samples(trainer.data, trainer.policy, model, settings, tmp_path)
    samples.write(0, torch.device("cpu"))
    from PIL import Image

    made = np.asarray(Image.open(tmp_path / "samples" / "reference-0.png")).astype(int)
    pair = samples.pairs[0]
    pipeline: Any = load_pipeline(model, "cpu", torch.float32)

    def own(negative: str | None) -> np.ndarray:
        generator = torch.Generator().manual_seed(derived_seed(settings.seed, "sample", pair.prompt_id))
        arguments: dict[str, Any] = {"num_inference_steps": 20, "true_cfg_scale": 4.0, "height": SIDE, "width": SIDE}
        image = pipeline(pair.prompt, negative_prompt=negative, generator=generator, **arguments).images[0]
        return np.asarray(image).astype(int)

    guided = own(" ")
    away = np.abs(guided - own(None)).mean()
    assert np.abs(made - guided).mean() < away / 10  # the cache is in bfloat16
    with torch.no_grad():
        (blank,) = trainer.data.family.encode(pipeline, [" "])["prompt_embeds"]
    (dropped,) = trainer.data.prompt_embeds.ragged("prompt_embeds", [EMPTY_PROMPT_ID])
    torch.testing.assert_close(dropped, blank.bfloat16())


@pytest.mark.slow(reason="trains and loads small models")
def test_prompts_of_different_lengths_are_trained_on_with_their_mask(settings: TrainConfig, labelled: PairStore):
    Path(settings.output_dir).mkdir()
    trainer = Trainer(replace(settings, proportion_empty_prompts=0.0), labelled, StopSignal())
    (batch,) = trainer.data.batch(0, 30)
    lengths = [len(pair.prompt) + 5 for pair in batch.pairs]  # "prompt 0" to "prompt 39"
    assert len(set(lengths)) == 2
    assert batch.conditions["prompt_embeds_mask"].sum(dim=1).tolist() == lengths * 2
    before = [parameter.detach().clone() for parameter in trainer.policy.parameters()]
    errors = trainer.denoiser.errors([batch])
    assert errors.chosen.dtype == torch.float32
    assert errors.chosen.isfinite().all()
    trainer.train("run")
    assert all(parameter.isfinite().all() for parameter in trainer.policy.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.policy.parameters(), strict=True))


@pytest.mark.slow(reason="trains and loads small models")
@pytest.mark.parametrize("rank", [0, 2])
def test_an_interrupted_run_ends_with_the_same_weights_and_its_card_with_guidance(
    settings: TrainConfig, labelled: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
):
    settings = replace(settings, lora_rank=rank, max_train_steps=2)
    whole, cut = (replace(settings, output_dir=str(tmp_path / name)) for name in ("whole", "cut"))
    train(whole, labelled)
    step: Callable[..., Any] = Trainer.step

    def interrupted(self: Trainer, micro_batches: Any = None) -> Any:
        self.stop.number = signal.SIGTERM
        return step(self, micro_batches)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", interrupted)
        with pytest.raises(Interrupted):
            train(cut, labelled)
    assert train(cut, labelled)["steps"] == 2
    card = (Path(whole.output_dir) / "README.md").read_text()
    assert 'image = pipeline(prompt="a red circle left of a blue square", ' in card
    assert "negative_prompt=' ').images[0]" in card  # without, it would have no guidance
    name = "pytorch_lora_weights.safetensors" if rank else "transformer/diffusion_pytorch_model.safetensors"
    assert sha256(Path(whole.output_dir) / name) == sha256(Path(cut.output_dir) / name)


@pytest.mark.parametrize(
    ("part", "settings", "named"),
    [
        ("transformer", {"guidance_embeds": True}, "cannot call a transformer with guidance_embeds"),
        ("transformer", {"use_additional_t_cond": True}, "cannot call a transformer with use_additional_t_cond"),
        ("transformer", {"in_channels": 64}, "in_channels of the transformer is 64, not 16"),
        ("transformer", {"patch_size": 1}, "patch_size is 1, not 2"),
        ("vae", {"latents_std": [1.0, 1.0, 0.0, 1.0]}, "latents_std"),
        ("vae", {"latents_mean": [0.0]}, "latents_mean"),
        ("vae", {"temperal_downsample": [False, True, True, True]}, "downsampling blocks of the VAE is 3, not 4"),
    ],
)
def test_settings_that_the_pipeline_cannot_use_are_refused(
    folder: Path, tmp_path: Path, part: str, settings: dict[str, Any], named: str
):
    model = changed(folder, tmp_path / "other", part, **settings)
    with pytest.raises(IntegrityError, match=named) as raised:
        family_of(find_model(model))
    assert "\n" not in str(raised.value)


def test_a_text_encoder_is_as_wide_in_settings_of_an_older_transformers(folder: Path, tmp_path: Path):
    """Which have the width beside the part for text, or without that part."""
    older = changed(folder, tmp_path / "older", "text_encoder", hidden_size=32, text_config=None)
    traits = traits_of(find_model(str(folder)))
    assert traits.text_encoders == ("Qwen2_5_VLForConditionalGeneration of width 32",)
    assert traits.latent_channels == 4
    assert traits_of(find_model(older)) == traits
    assert known_family(find_model(older)) is not None
