"""Learning rate, beta, batch size and so on are those of the model's recipe, and where each comes from is printed."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from prefloop.cli import app
from prefloop.loop.settings_file import read_loop
from prefloop.models.families import known_family
from prefloop.models.resolve import find_model
from prefloop.store import PairStore, UsageError
from prefloop.train import TrainConfig
from prefloop.train.config import NEEDED
from prefloop.train.defaults import DECIDED, DEFAULTS, Resolved, describe_sources, resolve_settings, sources
from prefloop.train.recipes import read_settings, recipes
from typer.testing import CliRunner

# kind of pipeline → learning rate, beta, LoRA rank, pairs per batch, batches per step, steps, warm-up steps
RECIPES = {
    "sd15": (1e-5, 5000, 16, 8, 8, 1000, 50),
    "sd21v": (1e-5, 5000, 16, 8, 8, 1000, 50),
    "sdxl": (1e-5, 5000, 16, 2, 32, 1000, 50),
    "sd35": (5e-5, 1000, 32, 2, 16, 1000, 50),
    "z-image": (5e-5, 1000, 32, 1, 32, 1000, 50),
    "flux2-klein": (1e-5, 1000, 32, 1, 32, 1000, 50),
    "flux1-dev": (5e-5, 1000, 32, 1, 32, 1000, 50),
    "qwen-image": (5e-5, 1000, 32, 1, 32, 1000, 50),
    "sana": (5e-5, 1000, 32, 8, 8, 1000, 50),
    "pixart-sigma": (1e-5, 5000, 16, 4, 16, 1000, 50),
}
WITHOUT = ("sdxl-turbo", "sdxl-refiner", "z-image-turbo", "flux1-schnell")
BASE: dict[str, Any] = {"output_dir": "out", "labelers": ("me",)}
NAMES = (
    *("learning_rate", "beta", "lora_rank", "train_batch_size", "gradient_accumulation_steps"),
    *("max_train_steps", "lr_warmup_steps"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kinds")


def model(kind: str, folder: Path) -> str:
    path = folder / kind
    return str(path if path.is_dir() else tiny.saved(kind, path))


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("kind", RECIPES)
def test_a_model_has_the_values_of_its_familys_recipe(kind: str, folder: Path):
    name = model(kind, folder)
    resolved = resolve_settings({**BASE, "model": name})
    config = TrainConfig(**resolved.settings)
    assert tuple(getattr(config, setting) for setting in NAMES) == RECIPES[kind]
    assert (config.mixed_precision, config.lr_scheduler) == ("bf16", "constant_with_warmup")
    # of the model that the recipe names; this one has its own
    assert (config.model, config.resolution, config.vae) == (name, None, None)
    assert resolved.from_recipe >= set(NAMES)


@pytest.mark.parametrize("kind", WITHOUT)
def test_a_model_without_a_recipe_is_refused_with_what_to_give(kind: str, folder: Path):
    name = model(kind, folder)
    with pytest.raises(UsageError) as refused:
        resolve_settings({**BASE, "model": name, "lora_rank": 4})
    family = known_family(find_model(name))
    assert family is not None
    assert str(refused.value) == (
        f"{name} has no recipe of its own ({family.name}): give --learning-rate, --train-batch-size, "
        "--gradient-accumulation-steps, --max-train-steps, --lr-warmup-steps, --mixed-precision, --beta, or name one of "
        "`prefloop train --recipes` with --config"
    )
    # MaPO's beta does not depend on the number of latent values
    given = dict.fromkeys(NEEDED, 1) | {"loss": "mapo", "model": name, **BASE}
    assert resolve_settings(given) == Resolved(given)


def test_every_recipe_decides_what_no_other_model_has_a_default_for():
    for name in recipes():
        assert set(DECIDED) <= read_settings(name).keys(), name
    assert set(NEEDED) < set(DECIDED)
    # nor is the model looked for if a recipe is named
    lora = {name for name in recipes() if name.endswith("-lora")}
    assert {resolve_settings({**BASE, **read_settings(name)}).recipe for name in lora} == {None}


def test_built_in_models_and_what_was_trained_on_them_keep_their_own_values(tmp_path: Path):
    import results

    tuned = results.lora_on(Path("shapes"), tmp_path / "tuned")
    for name in ("shapes", "shapes-flow", str(tuned)):
        given = {**BASE, "model": name}
        assert resolve_settings(given) == Resolved(given)
    config = TrainConfig(**BASE)
    assert tuple(getattr(config, setting) for setting in NAMES) == (1e-3, None, 16, 32, 1, 240, 10)


def test_what_is_given_comes_before_the_recipe_and_the_loss_brings_its_beta(folder: Path):
    given = {**BASE, "model": model("sd15", folder), "learning_rate": 3e-6, "max_train_steps": 7, "loss": "mapo"}
    resolved = resolve_settings(given)
    config = TrainConfig(**resolved.settings)
    assert (config.learning_rate, config.max_train_steps, config.resolved_beta) == (3e-6, 7, 0.1)
    origins = sources(resolved, {"learning_rate": 3e-6}, "mine.toml")
    assert describe_sources(config, origins) == [
        "learning rate 3e-6 from the command line",
        "beta 0.1 from the loss mapo",
        "LoRA rank 16, batch size 8, gradient accumulation 8, warm-up steps 50, mixed precision bf16, optimizer adamw from the "
        "recipe sd15-lora; --learning-rate and so on change them",
        "steps 7 from --config mine.toml",
    ]


def test_no_mixed_precision_is_told_as_what_it_is():
    config = TrainConfig(**BASE)
    assert describe_sources(config, {"mixed_precision": DEFAULTS, "lr_warmup_steps": DEFAULTS}) == [
        "precision float32, warm-up steps 10 from the built-in model's defaults"
    ]


def test_all_weights_are_not_trained_at_a_loras_learning_rate(folder: Path):
    given = {**BASE, "model": model("sd15", folder), "lora_rank": 0}
    with pytest.raises(UsageError, match=r"its recipe, sd15-lora, is for a LoRA: give --learning-rate too, or another"):
        resolve_settings(given)
    assert resolve_settings({**given, "learning_rate": 1e-6}).settings["lora_rank"] == 0


def test_the_model_that_a_recipe_names_has_its_vae_and_resolution_too(monkeypatch: pytest.MonkeyPatch, folder: Path):
    """As if the folder's name were that of the hub."""
    from prefloop.train import defaults

    name = model("sdxl", folder)
    monkeypatch.setattr(defaults, "read_settings", lambda recipe: read_settings(recipe) | {"model": name})
    settings = resolve_settings({**BASE, "model": name}).settings
    assert (settings["vae"], settings["resolution"]) == ("madebyollin/sdxl-vae-fp16-fix", 1024)


@pytest.mark.slow(reason="trains a model")
def test_train_prints_the_values_and_keeps_them_in_the_result(labelled: PairStore, folder: Path, tmp_path: Path):
    words = ["train", "--labeler", "redder", "--model", model("sd15", folder), "--store", labelled.path, "--cpu"]
    words += ["--max-train-steps", 1, "--gradient-accumulation-steps", 1, "--output-dir", tmp_path / "out"]
    ended = run(*words)
    assert ended.exit_code == 0, ended.output
    lines = ended.stderr.splitlines()
    assert lines[:2] == [
        "learning rate 1e-5, beta 5000, LoRA rank 16, batch size 8, warm-up steps 50, mixed precision bf16, optimizer adamw from "
        "the recipe sd15-lora; --learning-rate and so on change them",
        "gradient accumulation 1, steps 1 from the command line",
    ]
    kept = json.loads((tmp_path / "out" / "prefloop.json").read_text())["config"]
    assert (kept["learning_rate"], kept["beta"], kept["train_batch_size"]) == (1e-5, 5000, 8)


@pytest.mark.slow(reason="counts the operations of whole models")
def test_a_dry_run_needs_no_store_if_it_is_told_how_many_pairs(folder: Path, tmp_path: Path):
    name, store = model("sd15", folder), tmp_path / "none"
    words = ["train", "--model", name, "--dry-run", "--cpu", "--store", store]
    text = run(*words, "--pairs", 500)
    assert text.exit_code == 0, text.output
    assert text.stdout.startswith("learning rate 1e-5, beta 5000, LoRA rank 16, ")
    for line in (
        "family    sd, predicts epsilon; pairs are assumed",
        "memory    peak of ",
        "time      ",
        "TFLOP per pair",
    ):
        assert line in text.stdout
    values = json.loads(run(*words, "--pairs", 500, "--json").stdout)
    # 1000 steps of 64 pairs
    assert (values["estimate"]["n_pairs"], values["estimate"]["epochs"]) == (500, 128)
    # mean and standard deviation of 4 x 4 x 4 values in half precision, of 1000 images and their mirror images
    assert values["estimate"]["cache_bytes"]["latents"] == 1000 * 2 * 2 * 64 * 2
    assert values["sources"]["learning_rate"] == "the recipe sd15-lora"
    assert not store.exists()
    refused = run(*words)
    assert refused.exit_code == 2
    assert refused.stderr == (
        "prefloop: a dry run counts the pairs of a --store and a --labeler; without them, give their number with --pairs\n"
    )
    assert run("train", "--pairs", 5, "--output-dir", tmp_path / "out", "--labeler", "me").exit_code == 2


def test_a_loop_takes_the_recipe_of_its_model_and_says_so(folder: Path, tmp_path: Path):
    name, said = model("sd35", folder), list[str]()
    file = tmp_path / "loop.toml"
    file.write_text(f'[loop]\nmodel = "{name}"\n[train]\nmax_train_steps = 3\n[generate]\nprompts = "p.txt"\n')
    train = read_loop(str(file), say=said.append).train_config(1, "me")
    assert (train.learning_rate, train.beta, train.max_train_steps, train.model) == (5e-5, 1000, 3, name)
    assert said == [
        "learning rate 5e-5, beta 1000, LoRA rank 32, batch size 2, gradient accumulation 16, warm-up steps 50, mixed precision "
        "bf16, optimizer adamw from the recipe sd35-medium-lora; --set train.learning_rate=… and so on change them"
    ]
    # a loop that names its recipe is kept as before
    file.write_text(file.read_text().replace("[train]\n", '[train]\nconfig = "sd35-medium-lora"\n'))
    whole = read_loop(str(file), say=said.append)
    own = {setting: value for setting, value in read_settings("sd35-medium-lora").items() if setting != "model"}
    assert whole.train == own | {"max_train_steps": 3}
    assert len(said) == 1
    assert read_loop("shapes", say=said.append).train.keys() & {"mixed_precision", "optimizer"} == set()
    assert len(said) == 1
