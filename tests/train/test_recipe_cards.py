"""On which cards each recipe fits: by the published settings of its model, and as docs/hardware.md has it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from prefloop.models.cost.components import count_parameters, frozen_vae, text_encoder, trained_component
from prefloop.train.cost.published import MODELS
from prefloop.train.cost.recipe_cards import HEADER, RecipeCards, cards_of
from prefloop.train.recipes import read_settings, recipes

TEXT = (Path(__file__).parents[2] / "docs" / "hardware.md").read_text()
QUICK = ("flux2-klein-lora", "pixart-sigma-lora", "sana-lora", "z-image-lora")
SLOW = pytest.mark.slow(reason="a large model, counted several times")
PUBLISHED = {
    # billions of weights: of the U-Net or transformer, and of each text encoder; millions of the VAE
    "sd15-lora": (0.8595, [0.1231], 83.65),
    "sdxl-lora": (2.5675, [0.1231, 0.6947], 83.65),
    "sd35-medium-lora": (2.2432, [0.1237, 0.6947, 4.7623], 83.82),
    "flux1-lora": (11.9014, [0.1231, 4.7623], 83.82),
    "flux2-klein-lora": (3.8755, [4.0225], 84.05),
    "z-image-lora": (6.1549, [4.0225], 83.82),
    "qwen-image-lora": (20.4304, [8.2922], 126.89),
    "sana-lora": (1.6045, [2.6143], 312.25),
    "pixart-sigma-lora": (0.6109, [4.7623], 83.65),
}


def test_each_recipe_is_for_a_model_whose_settings_are_known():
    assert {read_settings(name)["model"] for name in recipes()} == MODELS.keys()
    assert {read_settings(name)["model"] for name in PUBLISHED} == MODELS.keys() - {"stabilityai/sdxl-turbo"}


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_the_parts_of_each_model_have_their_published_sizes(recipe: str):
    family = MODELS[read_settings(recipe)["model"]]()
    assert family.recipe == recipe
    component = trained_component(family, 0, None)
    text = [count_parameters(text_encoder(family.settings, part)) / 1e9 for part in family.text_encoders]
    billions, encoders, millions = PUBLISHED[recipe]
    assert component.n_parameters / 1e9 == pytest.approx(billions, abs=1e-4)
    assert text == pytest.approx(encoders, abs=1e-4)
    assert count_parameters(frozen_vae(family)) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("recipe", [name if name in QUICK else pytest.param(name, marks=SLOW) for name in recipes()])
def test_the_row_of_a_recipe_is_what_the_estimate_says(recipe: str):
    assert cards_of(recipe).row() in TEXT.splitlines()


@pytest.mark.slow(reason="counts the operations of whole models")
def test_flux_in_4_bits_is_as_large_as_its_weights_say():
    cards = cards_of("flux1-lora")
    # 11.9014 billion weights, 99.4355 % of them in blocks; a scale of 4 bytes for each 256 in int8, for each 64 in nf4
    in_blocks = 11.9014e9 * 0.994355
    saved = {"int8": in_blocks * (2 - 1 - 4 / 256), "nf4": in_blocks * (2 - 0.5 - 4 / 64)}
    # the largest layer, modulations of 3072 x 18432, is dequantized to 2 bytes
    for kind, expected in saved.items():
        assert cards.training_bytes - cards.quantized_bytes[kind] == pytest.approx(
            expected - 2 * 3072 * 18432, rel=1e-4
        )
    assert cards.cards == {16: "--quantize nf4", 24: "--quantize int8", 48: "", 80: ""}


def test_the_page_has_a_row_for_each_recipe():
    table = TEXT.split(HEADER)[1].split("\n\n")[0]
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", table, re.M) == list(recipes())


def test_a_row_shows_what_is_too_small_and_what_has_no_lora():
    cards = RecipeCards("sdxl-paper", 2**34, 3 * 2**33, {}, {16: None, 24: "", 48: "--gradient-checkpointing", 80: ""})
    assert cards.row() == (
        "| `sdxl-paper` | 16.0 | 24.0 |  |  | too small | as it is | `--gradient-checkpointing` | as it is |"
    )


@pytest.mark.slow(reason="a process that loads torch and counts a model")
def test_the_command_prints_one_row_after_the_other():
    command = [sys.executable, "-m", "prefloop", "train", "--recipes", "--dry-run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().rstrip("\n") for _ in range(3)]
        process.kill()
    assert lines[0] == HEADER
    assert "\n".join(lines) in TEXT
