"""What is particular about FLUX.2 [klein] and FLUX.1: the settings of the real models, guidance, and training them."""

import json
import shutil
import signal
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import diffusers
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from prefloop.core.errors import Interrupted
from prefloop.core.ids import noise_seed
from prefloop.generate.config import GenerateConfig
from prefloop.generate.sampler import ImageSampler
from prefloop.generate.stage import Generation
from prefloop.models.families import family_of, flux1, flux2
from prefloop.models.families.checks import component_from
from prefloop.models.families.settings import PipelineSettings
from prefloop.models.pipelines import load_pipeline
from prefloop.models.resolve import find_model
from prefloop.models.text_to_image import call_arguments, longest_tokenizer
from prefloop.store import IntegrityError, PairStore, UsageError
from prefloop.train import TrainConfig
from prefloop.train.policy import Policy
from prefloop.train.preflight import refuse_unsuitable
from prefloop.train.stage import train
from prefloop.train.trainer import Trainer
from safetensors.torch import load_file
from torch import nn

SIDE = 32
PROMPT = "a red circle"
KINDS = ("flux2-klein", "flux1-dev", "flux1-schnell")
# settings of the published models, as far as they differ from the classes' defaults
VAE = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
VAE |= {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
KLEIN_4B = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
KLEIN_4B |= {"guidance_embeds": False}
DEV = {"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "joint_attention_dim": 4096}
DEV |= {"pooled_projection_dim": 768, "guidance_embeds": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("flux")
    return {kind: tiny.saved(kind, root / kind) for kind in KINDS}


def loaded(folder: Path) -> Any:
    return load_pipeline(find_model(str(folder)), "cpu", torch.float32)


def encoded(family: Any, pipeline: Any, prompts: list[str]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return family.encode(pipeline, prompts)


def index(pipeline_class: str, transformer: str, vae: str, **more: object) -> dict[str, Any]:
    parts = {"transformer": ["diffusers", transformer], "vae": ["diffusers", vae]}
    parts |= {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    parts |= {"text_encoder": ["transformers", "CLIPTextModel"], "text_encoder_2": ["transformers", "T5EncoderModel"]}
    return {"_class_name": pipeline_class, **parts, **more}


def published(name: str) -> Any:
    """The family of a published model, from its settings alone."""
    scheduler = {"use_dynamic_shifting": True, "shift": 3.0}
    if name == "klein":
        named = index("Flux2KleinPipeline", "Flux2Transformer2DModel", "AutoencoderKLFlux2", is_distilled=False)
        parts = {"transformer": KLEIN_4B, "vae": VAE | {"latent_channels": 32}, "scheduler": scheduler}
        parts |= {"text_encoder": {"max_position_embeddings": 40960}}
        return flux2.family(PipelineSettings(name, named, parts)).checked()
    named = index("FluxPipeline", "FluxTransformer2DModel", "AutoencoderKL")
    scales = {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159}
    transformer = DEV | {"guidance_embeds": name == "dev"}
    parts = {"transformer": transformer, "vae": VAE | scales, "scheduler": scheduler}
    return flux1.family(PipelineSettings(name, named, parts)).checked()


@pytest.mark.slow(reason="trains and loads small models")
@pytest.mark.parametrize(
    ("name", "billions", "linears", "targets", "channels", "factor", "prompt"),
    [
        # 5 double blocks with 8 linear layers of attention and 4 of MLPs, 20 single ones with 2: 100; and 9 outside
        ("klein", 3.88, 109, 100, 128, 16, {"prompt_embeds": (512, 7680)}),
        # 19 x 12 + 38 x 3 = 342; not the projections of the single blocks' MLP, 2 x 38, of the modulations, 2 x 19 + 38, and the
        # 10 outside of blocks: image, text, 2 each for time, guidance and pooled text, and 2 at the end
        ("dev", 11.9, 504, 342, 16, 8, {"prompt_embeds": (512, 4096), "pooled_prompt_embeds": (768,)}),
        ("schnell", 11.9, 502, 342, 16, 8, {"prompt_embeds": (256, 4096), "pooled_prompt_embeds": (768,)}),
    ],
)
def test_a_published_model_is_trained_in_the_right_layers(
    config: TrainConfig,
    name: str,
    billions: float,
    linears: int,
    targets: int,
    channels: int,
    factor: int,
    prompt: dict[str, tuple[int, ...]],
) -> None:
    family = published(name)
    with torch.device("meta"):
        transformer = component_from(family.model_class, family.settings.parts["transformer"])
        assert sum(isinstance(module, nn.Linear) for module in transformer.modules()) == linears
        assert sum(weight.numel() for weight in transformer.parameters()) / 1e9 == pytest.approx(billions, rel=5e-3)
        policy = Policy(transformer, replace(config, lora_rank=2), family)
        assert len(policy.lora_layers) == targets
        assert len(policy.trainable_state()) == 2 * targets  # peft has put it on the same layers
        size = family.resolution // family.vae_factor
        conditions = {key: torch.empty(1, *shape) for key, shape in family.prompt_shapes().items()}
        noisy = torch.empty(1, family.latent_channels, size, size)
        predicted = family.predict(
            transformer, noisy, torch.empty(1), family.conditions(conditions, noisy, (1024, 1024))
        )
    assert predicted.shape == noisy.shape
    assert family.prompt_shapes() == prompt
    assert (family.latent_channels, family.vae_factor) == (channels, factor)
    assert (family.resolution, family.image_multiple, family.sides_multiple) == (1024, 16, 16)
    assert family.noise().shift == 1.0  # sigma is moved only when images are generated


def test_steps_guidance_and_tokens_are_those_of_the_model_cards(folders: dict[str, Path], tmp_path: Path) -> None:
    distilled = Path(shutil.copytree(folders["flux2-klein"], tmp_path / "klein"))
    path = distilled / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"is_distilled": True}))
    families = [family_of(find_model(str(folder))) for folder in (distilled, *folders.values())]
    assert [(family.name, family.usual, family.distilled) for family in families] == [
        ("flux2-klein-distilled", (4, 1.0), True),
        ("flux2-klein", (50, 4.0), False),
        ("flux1-dev", (50, 3.5), True),
        ("flux1-schnell", (4, 0.0), True),
    ]
    # 64 is all that the tiny Qwen3 has positions for
    assert [family.call_settings["max_sequence_length"] for family in families] == [64, 64, 512, 256]


def test_training_a_distilled_model_is_warned_of(
    folders: dict[str, Path], config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in KINDS:
        refuse_unsuitable(config, family_of(find_model(str(folders[kind]))))
        assert ("is distilled" in capsys.readouterr().err) == (kind != "flux2-klein")


@pytest.mark.parametrize("kind", KINDS)
def test_a_negative_prompt_that_would_not_be_used_is_refused(folders: dict[str, Path], kind: str) -> None:
    family = family_of(find_model(str(folders[kind])))
    pipeline_class = getattr(diffusers, family.pipeline_class)
    assert call_arguments(pipeline_class, family, 2.5, None) == {**family.call_settings, "guidance_scale": 2.5}
    with pytest.raises(UsageError, match="takes no negative prompt"):
        call_arguments(pipeline_class, family, 2.5, "blurred")


def test_a_negative_prompt_is_taken_where_its_own_scale_is_the_guidance() -> None:
    arguments = call_arguments(diffusers.QwenImagePipeline, None, 2.5, "blurred")  # its scale is 4 by default
    assert arguments["negative_prompt"] == "blurred"


def test_truncation_is_counted_with_the_number_of_tokens_the_model_is_called_with(folders: dict[str, Path]) -> None:
    pipeline = loaded(folders["flux1-schnell"])
    for given, limit in ((256, 256), (None, 512)):
        assert longest_tokenizer(pipeline, given) == (pipeline.tokenizer_2, limit)


@pytest.mark.parametrize(
    ("kind", "part", "changes", "named"),
    [
        ("flux2-klein", "transformer", {"in_channels": 24}, "in_channels of the transformer is 24, not 16"),
        ("flux2-klein", "vae", {"patch_size": [1, 1]}, "patch_size of the VAE is '1x1', not 2x2"),
        ("flux1-dev", "transformer", {"in_channels": 96, "out_channels": 16}, "is 96, not 16"),  # FLUX.1 Fill
        ("flux1-dev", "vae", {"scaling_factor": 0}, "scaling_factor of its VAE is 0"),
    ],
)
def test_parts_that_do_not_fit_together_are_named(
    folders: dict[str, Path], tmp_path: Path, kind: str, part: str, changes: dict[str, Any], named: str
) -> None:
    folder = Path(shutil.copytree(folders[kind], tmp_path / "model"))
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(IntegrityError, match=named):
        family_of(find_model(str(folder)))


@pytest.mark.parametrize("kind", ["flux2-klein", "flux1-dev"])
def test_several_steps_of_the_pipeline_are_steps_with_the_familys_prediction(
    folders: dict[str, Path], kind: str
) -> None:
    """Between sigma 1 and 0 a wrong scale of time shows, in an image that is not square rows taken for columns."""

    family, pipeline = family_of(find_model(str(folders[kind]))), loaded(folders[kind])
    shapes, side = import_module(tiny.FLOW_KINDS[kind]), SIDE // family.vae_factor
    latents = torch.randn(1, family.latent_channels, side, 2 * side, generator=torch.Generator().manual_seed(0))
    prompts = [PROMPT]
    conditions = family.conditions(encoded(family, pipeline, prompts), torch.zeros(1, 4), (SIDE, 2 * SIDE))
    assert prompts == [PROMPT]
    arguments = {"num_inference_steps": 3, "height": SIDE, "width": 2 * SIDE, "latents": shapes.packed(latents)}
    arguments |= {"guidance_scale": 1.0, "output_type": "latent", **family.call_settings}
    result = pipeline(prompt=prompts, **arguments).images
    sigmas = pipeline.scheduler.sigmas.tolist()
    assert 0 < sigmas[2] < sigmas[1] < sigmas[0] == 1
    for start, end in pairwise(sigmas):
        with torch.no_grad():
            velocity = family.predict(pipeline.transformer, latents, torch.tensor([1000 * start]), conditions)
        latents = latents + (end - start) * velocity
    torch.testing.assert_close(shapes.unpacked(result, SIDE, 2 * SIDE), latents, atol=2e-6, rtol=1e-5)


def test_only_klein_is_trained_on_the_mode_of_its_latents(folders: dict[str, Path]) -> None:
    """As in the training scripts of diffusers."""
    pixels = torch.zeros(1, 3, SIDE, SIDE)
    for kind, constant in (("flux2-klein", True), ("flux1-dev", False)):
        with torch.no_grad():
            _, std = family_of(find_model(str(folders[kind]))).latents(loaded(folders[kind]).vae, pixels)
        assert (std.abs().max() == 0) == constant


@pytest.mark.parametrize("kind", KINDS)
def test_cached_embeddings_generate_what_prompts_do(folders: dict[str, Path], kind: str) -> None:
    """Also with guidance, whose negative prompt is the empty one."""
    family, pipeline = family_of(find_model(str(folders[kind]))), loaded(folders[kind])
    prompt, negative = (encoded(family, pipeline, [text]) for text in (PROMPT, ""))

    def image(guidance: float, **what: Any) -> torch.Tensor:
        return pipeline(
            **what,
            **family.call_settings,
            num_inference_steps=2,
            guidance_scale=guidance,
            height=SIDE,
            width=SIDE,
            generator=torch.Generator().manual_seed(1),
            output_type="pt",
        ).images

    guided = image(4.0, prompt=[PROMPT])
    torch.testing.assert_close(image(4.0, **family.call_arguments(prompt, negative)), guided, atol=1e-6, rtol=1e-5)
    changed = (guided - image(1.0, prompt=[PROMPT])).abs().max() > 1e-4
    assert changed == (kind != "flux1-schnell")  # the only one that has no guidance


@pytest.mark.parametrize("kind", KINDS)
def test_generating_gives_the_pipelines_own_image_of_the_same_noise(folders: dict[str, Path], kind: str) -> None:
    settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0}
    config = GenerateConfig(model=str(folders[kind]), resolution=SIDE, device="cpu", **settings)
    sampler = ImageSampler(find_model(config.model), config)
    missing = [Generation(text, 0, uuid4()) for text in (PROMPT, "blue")]
    ((_, images),) = sampler.batches(missing)
    pipeline = loaded(folders[kind])
    generator = torch.Generator().manual_seed(noise_seed("blue", 0, 0))
    family = family_of(find_model(config.model))
    (alone,) = pipeline(
        prompt="blue", height=SIDE, width=SIDE, generator=generator, **settings, **family.call_settings
    ).images
    difference = np.asarray(images[1]).astype(int) - np.asarray(alone).astype(int)
    assert np.abs(difference).max() <= 1  # of 255: a batch rounds differently
    assert sampler.n_truncated([PROMPT, "a" * 1000]) == 1


@pytest.mark.slow(reason="trains and loads small models")
@pytest.mark.parametrize(("kind", "rank"), [("flux2-klein", 2), ("flux2-klein", 0), ("flux1-dev", 2)])
def test_training_in_bfloat16_resumes_to_the_bit_and_shows_samples(
    folders: dict[str, Path], labelled: PairStore, config: TrainConfig, tmp_path: Path, kind: str, rank: int
) -> None:
    config = replace(
        config,
        model=str(folders[kind]),
        max_train_samples=8,
        max_train_steps=3,
        resolution=SIDE,
        lora_rank=rank,
        mixed_precision="bf16",
        gradient_checkpointing=True,
        checkpointing_steps=1,
        validation_steps=3,
        n_samples=1,
    )
    whole = replace(config, output_dir=str(tmp_path / "whole"), sample_steps=3)  # which changes nothing else
    cut = replace(config, output_dir=str(tmp_path / "cut"))
    train(whole, labelled)
    step = Trainer.step

    def stopped(self: Trainer, *arguments: Any) -> Any:
        self.stop.number = signal.SIGTERM
        return step(self, *arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "step", stopped)
        with pytest.raises(Interrupted):
            train(cut, labelled)
    assert train(cut, labelled)["steps"] == 3
    results = [Path(each.output_dir) for each in (whole, cut)]
    file = "pytorch_lora_weights.safetensors" if rank else "transformer/diffusion_pytorch_model.safetensors"
    one, other = (load_file(folder / file) for folder in results)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    before = {} if rank else load_file(folders[kind] / file)
    # a LoRA's second matrix is zero before training
    changed = [not torch.equal(one[name], before.get(name, 0 * one[name])) for name in one if "lora_A" not in name]
    assert sum(changed) > len(changed) / 2
    # reference and policy side by side
    assert Image.open(results[0] / "samples" / "step-000003.png").size[0] > 2 * SIDE
    about = json.loads((results[0] / "prefloop.json").read_text())
    assert about["pipeline_class"] == type(loaded(folders[kind])).__name__
