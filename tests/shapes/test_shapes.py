"""The built-in world: its grammar, its images, its oracle, its models."""

import random
from collections import Counter
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from prefloop.generate.prompts import read_prompts
from prefloop.relabel import load_scorer
from prefloop.shapes import FLOW_PIPELINE, PIPELINE, WEIGHTS
from prefloop.shapes.oracle import check, find_shapes
from prefloop.shapes.prompts import UNSEEN
from prefloop.shapes.scene import RELATIONS, Scene, Shape, all_scenes, parse, render, wrong
from prefloop.shapes.words import MAX_LENGTH


@cache
def rendered(n: int, seed: int):
    """n scenes, a right image of each, and an image of the scene with one part changed."""
    rng, grammar = random.Random(seed), all_scenes()
    scenes = [rng.choice(grammar) for _ in range(n)]
    return scenes, [render(scene, rng) for scene in scenes], [render(wrong(scene, rng), rng) for scene in scenes]


def test_every_prompt_of_the_grammar_parses_to_its_scene():
    scenes = all_scenes()
    # 24 shapes alone; 24 * 23 ordered pairs in 3 relations
    assert len(scenes) == 24 + 3 * 24 * 23
    assert all(parse(str(scene)) == scene for scene in scenes)
    assert str(parse("an orange star above a red circle")) == "an orange star above a red circle"


@pytest.mark.parametrize("prompt", ["", "a photo of a cat", "a red", "a red circle under a blue square", "red circle"])
def test_other_prompts_are_refused(prompt: str):
    with pytest.raises(ValueError, match="not a shape of the built-in world"):
        parse(prompt)


@pytest.mark.slow(reason="runs the built-in models")
def test_the_oracle_is_right_on_98_of_100_rendered_images():
    scenes, right, bad = rendered(400, seed=1)
    assert np.mean([all(check(scene, image).values()) for scene, image in zip(scenes, right, strict=True)]) >= 0.98
    assert np.mean([not all(check(scene, image).values()) for scene, image in zip(scenes, bad, strict=True)]) >= 0.98


def test_the_oracle_says_which_part_is_wrong():
    rng = random.Random(3)
    image = render(parse("a red circle left of a blue square"), rng)
    assert [str(found.shape) for found in find_shapes(image)] == ["a red circle", "a blue square"]
    assert check("a blue square left of a red circle", image) == {
        "a blue square": True, "a red circle": True, "left of": False, "nothing else": True,
    }  # fmt: skip
    assert check("a red circle", image) == {"a red circle": True, "nothing else": False}
    assert check("a red star and a blue square", image)["a red star"] is False


def test_a_wrong_scene_differs_in_one_part():
    rng = random.Random(4)
    for scene in (rng.choice(all_scenes()) for _ in range(300)):
        other = wrong(scene, rng)
        assert other != scene
        assert len(other.shapes) == len(scene.shapes)
        words = Counter(str(scene).split()) - Counter(str(other).split())
        # swapped places change no word; a color or form changes one, and perhaps its article
        assert sum(words.values()) <= 2


def test_no_held_out_prompt_means_the_same_as_a_training_prompt():
    train, heldout = ([parse(prompt.text) for prompt in read_prompts(name)] for name in ("shapes", "shapes-heldout"))
    assert len(heldout) >= 200
    assert not any(UNSEEN & set(scene.shapes) for scene in train)
    assert {
        Shape("green", "star"),
        Shape("purple", "circle"),
        Shape("orange", "square"),
        Shape("blue", "triangle"),
    } == UNSEEN
    assert sum(bool(UNSEEN & set(scene.shapes)) for scene in heldout) >= 100

    def meaning(scene: Scene):
        return (frozenset(scene.shapes), "and") if scene.relation == "and" else (scene.shapes, scene.relation)

    assert not {meaning(scene) for scene in train} & {meaning(scene) for scene in heldout}
    assert {scene.relation for scene in heldout} >= set(RELATIONS)


def test_the_shipped_weights_are_safetensors_of_at_most_32_mb():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 32_000_000
    # HPS is published as a torch checkpoint under state_dict, and shipped like that
    assert {path.name for path in files if path.suffix not in (".safetensors", ".json", ".txt")} == {"hps.pt"}


@pytest.mark.slow(reason="runs the built-in models")
@pytest.mark.parametrize(
    ("model", "pipeline"), [("shapes", "StableDiffusionPipeline"), ("shapes-flow", "StableDiffusion3Pipeline")]
)
def test_the_base_models_follow_some_of_their_prompts(model: str, pipeline: str):
    from prefloop.generate.config import GenerateConfig
    from prefloop.generate.sampler import ImageSampler
    from prefloop.generate.stage import plan

    planned = plan(GenerateConfig(model=model, prompts="shapes-heldout", images_per_prompt=1, batch_size=40), None)
    sampler = ImageSampler(planned.model, planned.config)
    assert sampler.description["pipeline"] == pipeline
    followed = [
        all(check(item.prompt, image).values())
        for batch, images in sampler.batches(planned.generations[::5])
        for item, image in zip(batch, images, strict=True)
    ]
    # measured between 40 and 75 %; the standard deviation over 80 images is 5.6 %, and two of them are allowed on each side
    assert 0.29 <= np.mean(followed) <= 0.86


def test_the_flow_pipeline_is_one_that_diffusers_loads():
    """Without T5, which diffusers wants to be told, and without its tokens, which the transformer was not trained with."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    pipeline: Any = StableDiffusion3Pipeline.from_pretrained(FLOW_PIPELINE, text_encoder_3=None, tokenizer_3=None)
    assert isinstance(pipeline.transformer, SD3Transformer2DModel)
    embeds, *_ = pipeline.encode_prompt("a red circle", None, None, max_sequence_length=0)
    assert embeds.shape == (1, MAX_LENGTH, pipeline.transformer.config["joint_attention_dim"])


def test_the_pipeline_is_one_that_diffusers_loads():
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    pipeline = StableDiffusionPipeline.from_pretrained(PIPELINE)
    assert isinstance(pipeline.vae, AutoencoderKL)
    assert isinstance(pipeline.unet, UNet2DConditionModel)
    assert isinstance(pipeline.text_encoder, CLIPTextModel)
    assert pipeline.tokenizer("a red circle").input_ids == pipeline.tokenizer("A  RED circle").input_ids


@pytest.mark.slow(reason="runs the built-in models")
@pytest.mark.parametrize("name", ["pickscore", "hps", "clip"])
def test_scorers_rank_the_right_image_above_a_wrong_one(name: str):
    scorer = load_scorer(name, "shapes")
    scenes, right, bad = rendered(200, seed=6)
    prompts = [str(scene) for scene in scenes]
    accuracy = np.mean(scorer.score(prompts, right) > scorer.score(prompts, bad))
    assert accuracy >= 0.9


@pytest.mark.slow(reason="runs the built-in models")
def test_the_scorers_disagree_a_little():
    scenes, right, bad = rendered(200, seed=8)
    prompts = [str(scene) for scene in scenes]
    scorers = [load_scorer(name, "shapes") for name in ("pickscore", "hps", "clip")]
    preferences = [scorer.score(prompts, right) > scorer.score(prompts, bad) for scorer in scorers]
    assert all(0 < np.mean(a != b) < 0.2 for a, b in combinations(preferences, 2))


def test_aesthetics_ignores_prompts_and_prefers_full_images():
    scorer = load_scorer("aesthetics", "shapes")
    _, images, _ = rendered(60, seed=9)
    scores = scorer.score(["a red circle"] * 60, images)
    assert np.array_equal(scores, scorer.score(["nonsense"] * 60, images))
    painted = [float((np.asarray(image).min(2) < 217).mean()) for image in images]
    assert np.corrcoef(scores, painted)[0, 1] > 0.9


def test_the_tokenizer_is_the_one_the_weights_were_trained_with():
    from prefloop.shapes.words import tokenizer
    from transformers import CLIPTokenizer

    shipped = CLIPTokenizer.from_pretrained(PIPELINE / "tokenizer")
    assert tokenizer().get_vocab() == shipped.get_vocab()
