"""The baseline and the settings of both models, if the user names none: resolved before anything is generated."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import content
import pytest
import tiny
from prefloop.cli import app
from prefloop.core.hashing import RESULT_FILE
from prefloop.eval import EvalConfig
from prefloop.eval.judges import choose_scorers
from prefloop.eval.lineup import find_lineup, resolve_settings
from prefloop.eval.stage import evaluate
from prefloop.generate import GenerateConfig
from prefloop.generate.defaults import resolve_defaults, usual_settings
from prefloop.generate.stage import generate, plan
from prefloop.models.families import traits_of
from prefloop.models.resolve import find_model
from prefloop.store import PairStore, UsageError
from prefloop.train import TrainConfig
from prefloop.train.stage import train
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings of every kind of pipeline, a folder each, without the weights: nothing here loads them."""
    root = tmp_path_factory.mktemp("settings")
    for kind in tiny.KINDS:
        tiny.saved(kind, root / kind)
    for weights in root.rglob("*.safetensors"):
        weights.unlink()
    return root


@pytest.fixture
def result(tmp_path: Path) -> Callable[..., Path]:
    """A result of `train`: a copy of a model's folder that says what it was made from."""

    def make(model: Path, **about: Any) -> Path:
        folder = shutil.copytree(model, tmp_path / f"result-{len(list(tmp_path.iterdir()))}")
        (folder / RESULT_FILE).write_text(json.dumps(about))
        return folder

    return make


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\na green star\n")
    return str(tmp_path / "prompts.txt")


def eval_config(model: Path, prompts: str | None, **more: Any) -> EvalConfig:
    return EvalConfig(
        models=(str(model),), prompts=prompts, scorers=("little_scorers:Redness",), n_resamples=200, **more
    )


def resolved(config: EvalConfig, store: PairStore) -> EvalConfig:
    return resolve_settings(config, find_lineup(config)[0], store)


def baseline(config: EvalConfig) -> str:
    _, lineup = find_lineup(config)
    return lineup.names[lineup.baselines[0]]


def test_the_baseline_is_what_the_model_was_trained_on(settings: Path, result: Callable[..., Path], prompts: str):
    first = result(settings / "sdxl", base_model=str(settings / "sdxl"))
    second = result(first, base_model=str(first), steps=2)
    (second / "note.json").write_text("{}")  # other files than the first: another model
    (first / "note.json").write_text('{"first": 1}')
    assert baseline(eval_config(first, prompts)) == str(settings / "sdxl")
    assert baseline(eval_config(second, prompts)) == str(first)
    assert baseline(eval_config(second, prompts, baseline=str(settings / "sdxl"))) == str(settings / "sdxl")


def test_where_the_baseline_is_not_known_it_is_asked_for(
    store: PairStore, settings: Path, prompts: str, tmp_path: Path
):
    foreign = shutil.copytree(settings / "sd15", tmp_path / "foreign")
    words = ["eval", "--model", foreign, "--prompts", prompts, "--scorer", "little_scorers:Redness"]
    ended = CliRunner().invoke(app, list(map(str, [*words, "--store", store.path])))
    assert ended.exit_code == 2
    (line,) = ended.stderr.splitlines()
    assert line.endswith("was trained on is not known; name the model to compare it with: --baseline")
    assert store.rows("select count(*) from runs") == [(0,)]


def other(folder: Path, part: str, **changes: Any) -> None:
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("vae", {"latent_channels": 16}, "they differ in number of latent channels, 4 against 16"),
        ("unet", {"sample_size": 8}, "they differ in side in pixels, 32 against 64"),
        (
            "text_encoder",
            {"hidden_size": 32},
            "differ in text encoders, CLIPTextModel of width 16 against CLIPTextModel of width 32",
        ),
    ],
)
def test_models_of_different_shapes_are_not_compared(
    store: PairStore, settings: Path, tmp_path: Path, prompts: str, part: str, changes: dict, message: str
):
    folder = shutil.copytree(settings / "sd15", tmp_path / "other")
    other(folder, part, **changes)
    config = eval_config(settings / "sd15", prompts, baseline=str(folder))
    with pytest.raises(UsageError, match=message):
        evaluate(config, store)
    assert store.rows("select count(*) from runs") == [(0,)]
    if part == "unet":  # the same side for both makes them alike
        assert resolved(replace(config, resolution=32), store).resolution == 32


@pytest.mark.parametrize(("model", "base"), [("sd15", "sdxl"), ("sdxl-turbo", "sdxl"), ("sd15", "shapes")])
def test_models_of_different_kinds_are_not_compared(
    store: PairStore, settings: Path, prompts: str, model: str, base: str
):
    named = base if base == "shapes" else str(settings / base)
    with pytest.raises(UsageError, match="cannot be compared: they differ in"):
        evaluate(eval_config(settings / model, prompts, baseline=named), store)
    assert store.rows("select count(*) from runs") == [(0,)]


def test_each_kind_has_its_usual_settings(settings: Path):
    found = {kind: usual_settings(find_model(str(settings / kind))) for kind in tiny.KINDS if kind != "sdxl-refiner"}
    assert found == {"sd15": (25, 7.5), "sd21v": (25, 7.5), "sdxl": (30, 5.0), "sdxl-turbo": (4, 0.0)}
    assert usual_settings(find_model("shapes")) == (10, 2.5)
    with pytest.raises(UsageError, match="is a refiner, which starts from an image"):
        traits_of(find_model(str(settings / "sdxl-refiner")))


def test_a_pipeline_that_is_not_in_the_table_has_its_own_settings(tmp_path: Path):
    index = {"_class_name": "PixArtSigmaPipeline", "transformer": ["diffusers", "PixArtTransformer2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert usual_settings(find_model(str(tmp_path))) == (20, 4.5)  # of its __call__
    index["_class_name"] = "StableDiffusionUpscalePipeline"
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="StableDiffusionUpscalePipeline does not generate images from prompts alone"):
        usual_settings(find_model(str(tmp_path)))


def test_the_settings_of_the_training_images_go_before_the_usual_ones(
    store: PairStore, tiny_pipeline: Path, result: Callable[..., Path], prompts: str
):
    drawing = GenerateConfig(
        model=str(tiny_pipeline),
        prompts=prompts,
        images_per_prompt=2,
        num_inference_steps=2,
        guidance_scale=3.0,
        scheduler="ddim",
        resolution=32,
    )
    generate(drawing, store)
    content.add_labeler(store, "me")
    for (pair,) in store.rows("select pair_id from pairs"):
        content.add_label(store, pair, "me", "a")
    store.ingest()
    tuned = result(tiny_pipeline, base_model=str(tiny_pipeline), labelers={"me": {}})
    (tuned / "note.json").write_text("{}")
    found = resolved(eval_config(tuned, prompts), store)
    assert (found.num_inference_steps, found.guidance_scale) == (2, 3.0)
    assert (found.scheduler, found.resolution) == ("DDIMScheduler", 32)
    assert (
        resolve_defaults(
            GenerateConfig(model=str(tuned), prompts=prompts), find_model(str(tuned)), store
        ).guidance_scale
        == 3.0
    )
    # what is asked for goes first; another labeler's images tell nothing
    assert resolved(eval_config(tuned, prompts, guidance_scale=1.0), store).guidance_scale == 1.0
    (tuned / RESULT_FILE).write_text(json.dumps({"base_model": str(tiny_pipeline), "labelers": {"you": {}}}))
    assert resolved(eval_config(tuned, prompts), store).num_inference_steps == 25


def test_prompts_are_named_unless_the_model_is_the_built_in_one_or_trained_on_it(
    store: PairStore, settings: Path, result: Callable[..., Path]
):
    for words in (["generate"], ["eval", "--baseline", str(settings / "sdxl"), "--scorer", "little_scorers:Redness"]):
        model = result(settings / "sdxl", base_model=str(settings / "sdxl"))
        (model / "note.json").write_text("{}")
        ended = CliRunner().invoke(app, [*words, "--model", str(model), "--store", str(store.path)])
        assert ended.exit_code == 2
        (line,) = ended.stderr.splitlines()
        assert "name the prompts with --prompts" in line
    built_in = Path(find_model("shapes").source)
    tuned = result(built_in, base_model="shapes")
    (tuned / "note.json").write_text("{}")
    found = resolved(eval_config(tuned, None), store)
    assert (baseline(eval_config(tuned, None)), found.prompts) == ("shapes", "shapes-heldout")
    assert (found.num_inference_steps, found.guidance_scale) == (10, 2.5)
    assert resolve_defaults(GenerateConfig(model=str(tuned)), find_model(str(tuned)), store).prompts == "shapes"


def test_ids_of_the_built_in_world_are_what_they_always_were():
    planned = plan(GenerateConfig(), None)
    # 900 prompts of 4 images; they follow from 10 steps and a guidance of 2.5
    assert len(planned.generations) == 3600
    assert str(planned.generations[0].generation_id) == "4509159a-fe3b-4f7b-24bf-96b8d7d91a7d"
    assert str(planned.generations[-1].generation_id) == "e5175960-b861-7a3c-a6fd-ca1fde23d90f"


@pytest.mark.slow(reason="generates and judges images")
def test_a_lora_is_compared_with_its_base_and_the_settings_are_kept_and_shown(
    labelled: PairStore, config: TrainConfig, tiny_pipeline: Path, tmp_path: Path
):
    train(replace(config, lora_rank=2, max_train_steps=1, train_batch_size=1), labelled)
    ((trained,),) = [
        labelled.rows("select prompt from prompts where prompt_id = ?", [identity])
        for identity in trained_prompts(config)
    ]
    # 'redder' decided 30 of these prompts; one step of one pair was done
    (tmp_path / "prompts.txt").write_text("\n".join([trained[0], *(f"prompt {n}" for n in range(6)), "another"]))
    result = evaluate(
        eval_config(Path(config.output_dir), str(tmp_path / "prompts.txt"), num_inference_steps=3), labelled
    )
    assert result["baseline"] == str(tiny_pipeline)
    assert result["n_trained_prompts"] == 1
    assert (result["sampling"]["num_inference_steps"], result["sampling"]["guidance_scale"]) == (3, 7.5)
    ((stored,),) = labelled.rows("select config from runs where kind = 'eval'")
    assert {name: json.loads(stored)[name] for name in ("baseline", "num_inference_steps", "guidance_scale")} == {
        "baseline": str(tiny_pipeline),
        "num_inference_steps": 3,
        "guidance_scale": 7.5,
    }
    assert "3 steps, guidance 7.5" in (Path(result["report"]) / "report.html").read_text()


def trained_prompts(config: TrainConfig) -> set:
    from prefloop.models.trained_prompts import read_trained_prompts

    found = read_trained_prompts(Path(config.output_dir))
    assert found is not None
    return found


def test_without_a_scorer_those_that_suit_the_model_are_used(settings: Path, result: Callable[..., Path]):
    config = EvalConfig(models=("m",), checkpoints={"hps": "mine"})
    built_in, left_out = choose_scorers(config, find_model("shapes"), fetch=True)
    assert left_out == {}
    assert built_in.scorers == ("oracle", "pickscore", "hps", "clip", "aesthetics")
    assert built_in.checkpoints == {"": "shapes", "hps": "mine"}
    tuned = result(Path(find_model("shapes").source), base_model="shapes")
    (tuned / "note.json").write_text("{}")  # another model
    assert choose_scorers(config, find_model(str(tuned)), fetch=True) == (built_in, {})
    named = replace(config, scorers=("human",))
    assert choose_scorers(named, find_model("shapes"), fetch=True) == (named, {})
    foreign = find_model(str(settings / "sd15"))
    theirs = replace(config, checkpoints={"": "mine"})
    assert choose_scorers(theirs, foreign, fetch=True)[0].scorers == ("pickscore", "hps", "clip", "aesthetics")
