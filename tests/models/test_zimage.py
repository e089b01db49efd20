"""What is particular to Z-Image: prompts of different lengths, time and prediction that run backward, and its own guidance."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import content
import diffusers
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from prefloop.core.errors import IntegrityError, Interrupted
from prefloop.core.ids import noise_seed
from prefloop.core.signals import StopSignal
from prefloop.generate import GenerateConfig
from prefloop.generate.sampler import ImageSampler
from prefloop.generate.stage import Generation
from prefloop.models.families import family_of, zimage
from prefloop.models.families.settings import PipelineSettings
from prefloop.models.lora import lora_layers
from prefloop.models.pipelines import load_pipeline
from prefloop.models.resolve import find_model
from prefloop.models.text_to_image import call_arguments
from prefloop.store import PairStore
from prefloop.train import TrainConfig
from prefloop.train.batch import padded
from prefloop.train.cache import EMPTY_PROMPT_ID
from prefloop.train.pair_denoiser import PairDenoiser
from prefloop.train.preflight import refuse_unsuitable
from prefloop.train.stage import train
from prefloop.train.trainer import Trainer
from torch import Tensor

SIDE = 32
# Of dim, layers, widths and positions; the rest are the class's defaults: transformer/config.json of Tongyi-MAI/Z-Image.
REAL: dict[str, Any] = {"dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30, "cap_feat_dim": 2560}
REAL |= {"axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "in_channels": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved("z-image", tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return load_pipeline(find_model(str(folder)), "cpu", torch.float32)


@pytest.fixture(scope="module")
def family(folder: Path) -> Any:
    return family_of(find_model(str(folder)))


@pytest.fixture
def ragged(store: PairStore) -> PairStore:
    """14 prompts of 12 to 78 letters with one pair each, the redder image chosen."""
    content.add_labeler(store, "redder")
    for number in range(14):
        prompt = content.add_prompt(store, f"{'very ' * number}red circle {number}")
        dull, red = (content.add_image(store, (value, number, 40), SIDE) for value in (20, 220))
        pair = content.add_pair(store, prompt, dull, red)
        content.add_label(store, pair, "redder", "a" if red < dull else "b", margin=1.0)
    store.ingest()
    return store


def encoded(family: Any, pipeline: Any, *prompts: str) -> list[Tensor]:
    with torch.no_grad():
        return family.encode(pipeline, list(prompts))["prompt_embeds"]


def noise(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_prompts_are_encoded_by_their_own_tokens_and_stay_as_they_are(family: Any, pipeline: Any):
    prompts = ["a red circle", "", "x" * 600]
    with torch.no_grad():
        first, second = (family.encode(pipeline, prompts)["prompt_embeds"] for _ in range(2))
    assert prompts == ["a red circle", "", "x" * 600]
    # a token for each byte: 3 special ones, "user\n", "\n" and "assistant\n" are 19; at most 512
    assert [tuple(row.shape) for row in first] == [(31, 16), (19, 16), (512, 16)]
    assert all(torch.equal(*rows) for rows in zip(first, second, strict=True))
    # by hand: one prompt without padding, through the layers but the last
    text = "<|im_start|>user\na red circle<|im_end|>\n<|im_start|>assistant\n"
    with torch.no_grad():
        states = pipeline.text_encoder(
            **pipeline.tokenizer(text, return_tensors="pt"), output_hidden_states=True
        ).hidden_states
    torch.testing.assert_close(first[0], states[1][0], atol=1e-6, rtol=1e-5)
    assert len(states) == 3  # of the embedding and two layers


def test_padding_is_not_read_as_text(family: Any, pipeline: Any):
    embeds = padded({"prompt_embeds": encoded(family, pipeline, "blue", "", "a large green square above a circle")})
    assert embeds["prompt_embeds_mask"].sum(1).tolist() == [23, 19, 54]
    timesteps = torch.tensor([100.0, 500.0, 900.0])

    def predict(conditions: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return family.predict(pipeline.transformer, noise(3), timesteps, conditions)

    expected = predict(embeds)
    filled = embeds["prompt_embeds"].masked_fill(~embeds["prompt_embeds_mask"][:, :, None], 7.0)
    assert torch.equal(predict(embeds | {"prompt_embeds": filled}), expected)
    difference = (predict({"prompt_embeds": embeds["prompt_embeds"]}) - expected).abs().amax(dim=(1, 2, 3))
    assert difference[:2].min() > 1e-3  # the mask matters
    assert difference[2] < 1e-5  # but not to the longest prompt


def test_prompts_of_one_length_need_no_mask(family: Any, pipeline: Any):
    embeds = padded({"prompt_embeds": encoded(family, pipeline, "red", "tan")})
    assert embeds.keys() == {"prompt_embeds"}
    with torch.no_grad():
        both = family.predict(pipeline.transformer, noise(2), torch.tensor([200.0, 700.0]), embeds)
        one = family.predict(
            pipeline.transformer,
            noise(2)[1:],
            torch.tensor([700.0]),
            {"prompt_embeds": embeds["prompt_embeds"][1:]},
        )
    torch.testing.assert_close(both[1:], one, atol=1e-5, rtol=1e-4)


def test_guidance_adds_the_scaled_difference_to_the_positive_prediction(family: Any, pipeline: Any):
    """Cached embeddings go into the pipeline as texts do."""
    positive, negative = ({"prompt_embeds": row[None]} for row in encoded(family, pipeline, "a red circle", ""))
    settings: dict[str, Any] = {"num_inference_steps": 1, "height": SIDE, "width": SIDE, "output_type": "latent"}
    settings |= {"latents": noise(1), family.guidance_argument: 3.0, **family.call_settings}
    result = pipeline(**family.call_arguments(positive, negative), **settings).images
    assert torch.equal(result, pipeline("a red circle", negative_prompt="", **settings).images)
    sigma, end = pipeline.scheduler.sigmas.tolist()
    with torch.no_grad():
        pos, neg = (
            family.predict(pipeline.transformer, noise(1), torch.tensor([1000 * sigma]), embeds)
            for embeds in (positive, negative)
        )
    torch.testing.assert_close(result, noise(1) + (end - sigma) * (pos + 3.0 * (pos - neg)), atol=1e-5, rtol=1e-4)
    assert (pos - neg).abs().max() > 1e-3


def test_the_sampler_generates_what_the_pipeline_does(folder: Path, pipeline: Any):
    config = GenerateConfig(
        model=str(folder),
        num_inference_steps=2,
        guidance_scale=3.0,
        resolution=SIDE,
        negative_prompt="blue",
        device="cpu",
    )
    sampler = ImageSampler(find_model(str(folder)), config)
    items = [
        Generation(prompt, 0, UUID(int=at)) for at, prompt in enumerate(("a red circle", "a green star, far away"))
    ]
    ((batch, images),) = sampler.batches(items)
    assert batch == items
    for item, image in zip(items, images, strict=True):
        generator = torch.Generator().manual_seed(noise_seed(item.prompt, config.seed, item.index))
        settings: dict[str, Any] = {"negative_prompt": "blue", "num_inference_steps": 2, "guidance_scale": 3.0}
        own = pipeline(item.prompt, height=SIDE, width=SIDE, generator=generator, **settings).images[0]
        assert np.abs(np.asarray(own, dtype=int) - np.asarray(image, dtype=int)).max() <= 1  # batches round differently


def test_a_negative_prompt_is_taken(family: Any):
    arguments = call_arguments(diffusers.ZImagePipeline, family, 4.0, "blurry")
    assert arguments == {"max_sequence_length": 512, "guidance_scale": 4.0, "negative_prompt": "blurry"}


@pytest.mark.parametrize(
    ("scheduler", "name", "usual"),
    [
        ({"shift": 6.0, "use_dynamic_shifting": False}, "z-image", (50, 4.0)),
        ({"shift": 3.0, "use_dynamic_shifting": False}, "z-image-turbo", (8, 0.0)),
        ({"shift": 3.0, "use_dynamic_shifting": True}, "z-image", (50, 4.0)),
        ({}, "z-image", (50, 4.0)),
    ],
)
def test_turbo_is_recognized_by_its_noise_scheduler(
    capsys: pytest.CaptureFixture[str], scheduler: dict[str, Any], name: str, usual: tuple[int, float]
):
    index = {"_class_name": "ZImagePipeline", "transformer": ["diffusers", "ZImageTransformer2DModel"]}
    vae = {"block_out_channels": [128, 256, 512, 512], "sample_size": 1024}
    family: Any = zimage.family(
        PipelineSettings("a model", index, {"scheduler": scheduler, "vae": vae, "transformer": {}})
    )
    assert (family.name, family.usual, family.distilled) == (name, usual, name == "z-image-turbo")
    assert (family.resolution, family.image_multiple, family.sides_multiple) == (1024, 16, 16)
    assert family.noise().shift == 1.0  # trained without the shift that it generates with
    refuse_unsuitable(TrainConfig(output_dir="out", labelers=("me",)), family)
    assert ("distilled" in capsys.readouterr().err) == family.distilled


def test_a_lora_is_put_on_all_attention_and_mlp_layers_of_the_real_model():
    with torch.device("meta"):
        model: Any = diffusers.ZImageTransformer2DModel(**REAL)
    # 30 layers, 2 blocks that refine the image and 2 the text: 4 linears of attention and 3 of the MLP each
    assert len(lora_layers(model, None, zimage.ZImage.lora_targets)) == 34 * 7
    # a block has 4 x 3840² and 3 x 3840 x 10240 weights, 177 million; 32 of them 256 x 15360 more: 6.14 billion in all
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(6.15e9, rel=2e-3)


def test_the_real_model_predicts_on_the_meta_device_from_the_longest_prompt():
    one_layer: dict[str, Any] = REAL | {"n_layers": 1, "n_refiner_layers": 1}
    with torch.device("meta"):
        model: Any = diffusers.ZImageTransformer2DModel(**one_layer)
        noisy, timesteps = torch.empty(2, 16, 128, 128), torch.empty(2)
    parts = {"transformer": REAL, "vae": {}}
    family: Any = zimage.family(PipelineSettings("a model", {"_class_name": "ZImagePipeline"}, parts))
    shapes = family.prompt_shapes()
    assert shapes == {"prompt_embeds": (512, 2560)}
    embeds = {name: torch.empty(2, *shape, device="meta") for name, shape in shapes.items()}
    predicted = family.predict(model, noisy, timesteps, family.conditions(embeds, torch.empty(2, 4), (1024, 1024)))
    assert predicted.shape == noisy.shape
    assert predicted.is_meta


@pytest.mark.parametrize(
    ("part", "settings", "words"),
    [
        ("vae", {"sample_size": 40}, "sample_size of the VAE is 40"),
        ("vae", {"shift_factor": None}, "no shift_factor"),
        ("vae", {"scaling_factor": 0.0}, "scaling_factor of its VAE"),
        ("transformer", {"in_channels": 8}, "in_channels of the transformer is 8, not 4"),
        ("transformer", {"cap_feat_dim": 24}, "cap_feat_dim of the transformer is 24, not 16"),
        ("transformer", {"all_patch_size": [4]}, "patch size is '4 x 1', not 2 x 1"),
        ("transformer", {"axes_lens": [513, 512, 512]}, r"axes_lens\[0\] is 513"),  # the image's place is 513, from 0
        ("transformer", {"axes_lens": [1536, 512, 1]}, r"axes_lens\[2\] is 1"),  # 32 pixels are 2 patches
        ("transformer", {"axes_lens": [1536, 512, 10**9]}, r"axes_lens\[2\] is 1000000000"),
        ("transformer", {"axes_dims": [8, 8], "axes_lens": [1536, 512]}, "axes_lens"),
        ("transformer", {"axes_dims": [4, 4, 4]}, "cannot be made"),
    ],
)
def test_settings_that_make_no_usable_model_are_refused(folder: Path, part: str, settings: dict[str, Any], words: str):
    own = find_model(str(folder)).settings
    parts = own.parts | {part: own.parts[part] | settings}
    with pytest.raises(IntegrityError, match=words):
        zimage.family(replace(own, parts=parts)).checked()


def settings_for(folder: Path, output: Path, **more: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "max_train_steps": 3,
        "train_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_warmup_steps": 0,
    }
    settings |= {"output_dir": str(output), "labelers": ("redder",), "model": str(folder), "cpu": True}
    return TrainConfig(**settings | more)


@pytest.mark.slow(reason="trains and loads small models")
def test_a_batch_of_dropped_and_other_prompts_has_the_errors_of_its_pairs(
    folder: Path, ragged: PairStore, tmp_path: Path
):
    config = settings_for(folder, tmp_path, lora_rank=2, proportion_empty_prompts=0.5)
    trainer = Trainer(config, ragged, StopSignal())
    data = trainer.data
    data.encode(0, 6)
    samples = data.samples(0, 6)
    (batch,) = data.sample_batch(samples)
    lengths = batch.conditions["prompt_embeds_mask"].sum(1).tolist()
    (empty,) = data.prompt_embeds.ragged("prompt_embeds", [EMPTY_PROMPT_ID])
    whole = data.prompt_embeds.ragged("prompt_embeds", [pair.prompt_id for pair in batch.pairs])
    assert empty.dtype is torch.bfloat16
    n_empty = 0
    for row, length, own in zip(batch.conditions["prompt_embeds"], lengths[:6], whole, strict=False):
        assert length in (len(empty), len(own))
        n_empty += length == len(empty)
        assert torch.equal(row[:length], (empty if length == len(empty) else own).float())
        assert not row[length:].any()
    assert lengths[:6] == lengths[6:]  # the rejected images have the chosen ones' prompts
    assert 0 < n_empty < 6
    denoiser = PairDenoiser(trainer.policy, trainer.policy.component, config, trainer.accelerator)
    together = denoiser.policy_errors([batch])
    alone = denoiser.policy_errors([data.sample_batch([sample])[0] for sample in samples])
    torch.testing.assert_close(together.chosen, alone.chosen, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.rejected, alone.rejected, atol=1e-5, rtol=1e-4)


RUNS: list[dict[str, Any]] = [
    {"lora_rank": 2, "mixed_precision": "bf16", "gradient_checkpointing": True, "sample_steps": 2, "n_samples": 1},
    {"lora_rank": 0, "reference_draws": 1},
]


@pytest.mark.slow(reason="trains and loads small models")
@pytest.mark.parametrize("more", RUNS, ids=["lora", "full"])
def test_an_interrupted_run_on_prompts_of_different_lengths_ends_like_an_undisturbed_one(
    folder: Path, ragged: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
):
    """With validation, dropped prompts, and sample images or cached errors of the reference."""
    settings = more | {"max_train_steps": 2, "validation_steps": 1, "proportion_empty_prompts": 0.5}
    whole, cut = (settings_for(folder, tmp_path / name, **settings) for name in ("whole", "cut"))
    assert train(whole, ragged)["steps"] == 2
    step: Callable[..., Any] = Trainer.step

    def stopped(self: Trainer, *arguments: Any) -> Any:
        self.stop.number = signal.SIGTERM
        return step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", stopped)
        with pytest.raises(Interrupted):
            train(cut, ragged)
    assert train(cut, ragged)["steps"] == 2
    weights = (
        "pytorch_lora_weights.safetensors" if whole.lora_rank else "transformer/diffusion_pytorch_model.safetensors"
    )
    sheet = "samples/step-000002.png"
    for name in (weights, "metrics.csv", "validation.csv", *[sheet] * (whole.sample_steps > 0)):
        contents = [(Path(config.output_dir) / name).read_bytes() for config in (whole, cut)]
        assert contents[0] == contents[1], name
    # before and after each step, in each bin of timesteps and in all
    assert len((tmp_path / "whole" / "validation.csv").read_text().splitlines()) == 1 + 3 * 6
    if whole.sample_steps:
        pixels = np.asarray(Image.open(tmp_path / "whole" / sheet), dtype=int)
        before, after = pixels[20:52, 4:36], pixels[20:52, 40:72]  # below a line of text, 4 pixels apart
        assert np.abs(before - after).max() > 0
        assert before.std() > 1
