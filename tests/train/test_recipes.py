"""Recipes and files of options."""

import json
import re
from pathlib import Path

import pytest
from prefloop.cli import app
from prefloop.store import UsageError
from prefloop.train import TrainConfig
from prefloop.train.recipes import merge_settings, read_settings, recipes
from typer.testing import CliRunner

LATENTS = {  # channels, height and width
    "flux1-lora": (16, 64, 64),
    "flux2-klein-lora": (128, 64, 64),
    "qwen-image-lora": (16, 128, 128),
    "pixart-sigma-lora": (4, 128, 128),
    "sana-lora": (32, 32, 32),
    "sd15-lora": (4, 64, 64),
    "sd15-paper": (4, 64, 64),
    "sd35-medium-lora": (16, 128, 128),
    "sdxl-lora": (4, 128, 128),
    "sdxl-paper": (4, 128, 128),
    "sdxl-turbo": (4, 64, 64),
    "z-image-lora": (16, 128, 128),
}


def test_every_recipe_is_valid_and_states_its_learning_rate_batch_and_beta():
    assert recipes().keys() == LATENTS.keys()
    for name, line in recipes().items():
        config = TrainConfig(output_dir="out", labelers=("someone",), **read_settings(name))
        pairs = config.train_batch_size * config.gradient_accumulation_steps
        rate = config.learning_rate * (pairs if config.scale_lr else 1)
        shown = f"{rate:.4g}".replace("e-0", "e-")
        assert f"{pairs} pairs per step, absolute learning rate {shown}" in line
        second = (Path(__file__).parents[2] / "train" / "recipes" / f"{name}.toml").read_text().splitlines()[1]
        assert config.resolution is not None
        assert config.beta is not None
        channels, height, width = LATENTS[name]
        assert height == width
        assert config.resolution == (32 if name == "sana-lora" else 16 if name == "flux2-klein-lora" else 8) * height
        match = re.search(
            r"beta (\d+) per element mean = ([\d.]+) per sum over (\d+) x (\d+) x (\d+) latent values", second
        )
        assert match is not None, name
        assert float(match[1]) == config.beta
        assert tuple(map(int, match.groups()[2:])) == LATENTS[name]
        assert float(match[2]) == pytest.approx(config.beta / (channels * height * width), rel=5e-3)


def test_the_recipe_for_stable_diffusion_35_accumulates_32_pairs_in_bfloat16():
    config = TrainConfig(output_dir="out", labelers=("someone",), **read_settings("sd35-medium-lora"))
    assert (config.beta, config.learning_rate, config.lora_rank, config.max_grad_norm) == (1000, 5e-5, 32, 1.0)
    assert config.train_batch_size * config.gradient_accumulation_steps == 32
    assert (config.mixed_precision, config.gradient_checkpointing, config.scale_lr) == ("bf16", "auto", False)


@pytest.mark.slow(reason="trains a model")
def test_options_on_the_command_line_override_the_file(tmp_path: Path):
    import content
    from prefloop.store import PairStore

    store = PairStore.create(tmp_path / "store")
    content.add_labeler(store, "me")
    for pair in content.fill(store, n_prompts=12):
        content.add_label(store, pair, "me", "a")
    store.ingest()
    (tmp_path / "mine.toml").write_text('labels = ["me"]\nbeta-dpo = 700\nmax_train_steps = 7\n')
    words = ["train", "--config", str(tmp_path / "mine.toml"), "--store", str(store.path), "--max-train-steps", "9"]
    result = CliRunner().invoke(app, [*words, "--output-dir", str(tmp_path / "out"), "--dry-run", "--json", "--cpu"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert (answer["config"]["beta"], answer["config"]["max_train_steps"]) == (700, 9)
    assert answer["beta_sum"] == pytest.approx(700 / 512)  # 8 x 8 x 8 values
    assert answer["config"]["optimizer"] == "adamw"
    assert answer["estimate"]["n_steps"] == 9
    assert not (tmp_path / "out").exists()  # nothing was created


def test_a_recipes_beta_is_dropped_with_its_loss():
    recipe = read_settings("sd15-lora")
    assert (
        merge_settings(recipe, {})["beta"] == merge_settings(recipe, {"loss": "kto"})["beta"] == 5000
    )  # of the same scale
    for loss in ("mapo", "sft"):
        assert "beta" not in merge_settings(recipe, {"loss": loss})
    assert merge_settings(recipe, {"loss": "mapo", "beta": 0.2})["beta"] == 0.2
    assert merge_settings({"beta": 0.3, "loss": "mapo"}, {"seed": 1})["beta"] == 0.3


def test_a_file_may_use_earlier_names_and_the_names_of_options(tmp_path: Path):
    for text, settings in (
        ("beta_dpo = 7\nunet-init = 'u'\ncache_reference = 2", {"beta": 7, "init_from": "u", "reference_draws": 2}),
        ("labels = ['a', 'b=2']", {"labelers": ("a", "b=2")}),
        ("choice-model = 'pickscore'", {"labelers": ("pickscore",)}),
        ("choice_model = ['pickscore']", {"labelers": ("pickscore",)}),
        ("labeler = 'me'", {"labelers": ("me",)}),
        ("labelers = ['me']", {"labelers": ("me",)}),
    ):
        (tmp_path / "mine.toml").write_text(text)
        assert read_settings(str(tmp_path / "mine.toml")) == settings


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("betadpo = 1", "betadpo"),
        ('beta = "much"', "beta"),
        ("lora_rank = 1.5", "lora_rank"),
        ("labels = 3", "labels to 3, which is not a string or a list of strings"),
        ('labels = "me"\nlabeler = "you"', "sets labelers twice, the second time as labeler"),
        ("random_flip = 1", "random_flip"),
        ("beta = ", "TOML"),
    ],
)
def test_a_wrong_line_of_a_file_is_named(tmp_path: Path, text: str, named: str):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=named):
        read_settings(str(tmp_path / "mine.toml"))


def test_an_unknown_recipe_is_answered_with_the_known_ones():
    with pytest.raises(UsageError, match="sd15-lora"):
        read_settings("sd15-lota")
