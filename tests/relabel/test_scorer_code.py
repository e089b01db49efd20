"""No code from a scorer's checkpoint folder runs, whatever its settings name, and scores do not change."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_imagereward
import torch
from canaries import HOW, MODULE, Canary, How, plant
from content import fill
from prefloop.cli import app
from prefloop.eval import EvalConfig
from prefloop.eval.stage import evaluate
from prefloop.relabel.scorers.checkpoints import built_in
from prefloop.relabel.scorers.registry import load_scorer
from prefloop.store import IntegrityError, PairStore
from transformers import BertTokenizer
from typer.testing import CliRunner

RUNNER = CliRunner()
SCORERS = ("pickscore", "hps", "hpsv2", "hpsv2.1", "clip", "aesthetics", "imagereward")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a scorer's small weights."""
    imagereward = tmp_path_factory.mktemp("imagereward")
    torch.save(test_imagereward.weights(), imagereward / "ImageReward.pt")
    kind: Any = BertTokenizer
    kind(vocab={word: at for at, word in enumerate(test_imagereward.WORDS)}).save_pretrained(imagereward)

    def folder(name: str) -> Path:
        return imagereward if name == "imagereward" else built_in("hps" if name.startswith("hps") else name)

    return folder


def checked(name: str, folder: Path) -> tuple[int, str, str]:
    ended = RUNNER.invoke(app, ["scorers", "check", name, "--checkpoint", str(folder)])
    return ended.exit_code, ended.stdout, ended.stderr


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", SCORERS)
def test_settings_that_name_code_change_neither_score_nor_identity_and_run_none(
    folders: Callable[[str], Path], store: PairStore, tmp_path: Path, name: str, how: How
):
    folder = shutil.copytree(folders(name), tmp_path / "weights")
    bird = plant(folder, how)
    fill(store, 1)
    words = ["relabel", "--scorer", name, "--checkpoint", str(folder), "--store", str(store.path), "--json"]
    ended = RUNNER.invoke(app, words)
    assert (ended.exit_code, not bird.imported) == (0, True), ended.output
    assert json.loads(ended.stdout)["scored"] == {load_scorer(name, str(folder)).name: 2}
    result = checked(name, folder)
    assert not bird.imported
    assert result == checked(name, folders(name))


def add_tokenizer_arguments(path: Path, content: dict[str, Any], bird: Canary) -> None:
    """In the section that open_clip's own loader passes to AutoTokenizer."""
    if path.name == "open_clip_config.json":
        content["model_cfg"]["text_cfg"] |= {"tokenizer_kwargs": {"trust_remote_code": True, **bird.keys()}}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("command", ["relabel", "check"])
@pytest.mark.parametrize("name", ["clip", "hps", "hpsv2"])
def test_open_clip_settings_with_arguments_for_a_loader_end_with_5(
    folders: Callable[[str], Path], store: PairStore, tmp_path: Path, name: str, command: str, how: How
):
    folder = shutil.copytree(folders(name), tmp_path / "weights")
    bird = plant(folder, how, add_tokenizer_arguments)
    fill(store, 1)
    words = {"relabel": ["relabel", "--store", str(store.path), "--scorer"], "check": ["scorers", "check"]}[command]
    ended = RUNNER.invoke(app, [*words, name, "--checkpoint", str(folder)])
    assert (ended.exit_code, ended.stdout, not bird.imported) == (5, "", True)
    assert "sets text_cfg.tokenizer_kwargs, which prefloop does not load" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.slow(reason="scores in several runs")
@pytest.mark.parametrize("how", HOW)
def test_an_evaluation_runs_no_code_from_a_scorers_folder(
    store: PairStore, tmp_path: Path, tiny_pipeline: Path, how: How
):
    folder = shutil.copytree(built_in("clip"), tmp_path / "weights")
    bird = plant(folder, how)
    other = shutil.copytree(tiny_pipeline, tmp_path / "other")
    (other / "note.json").write_text("{}")
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    config = EvalConfig(
        models=(str(other),),
        baseline=str(tiny_pipeline),
        prompts=str(tmp_path / "prompts.txt"),
        scorers=("clip",),
        checkpoints={"clip": str(folder)},
        images_per_prompt=1,
        num_inference_steps=1,
        n_resamples=100,
        output_dir=str(tmp_path / "report"),
    )
    assert list(evaluate(config, store)["scorers"]) == ["clip"]
    assert not bird.imported
    plant(folder, how, add_tokenizer_arguments)
    with pytest.raises(IntegrityError, match="tokenizer_kwargs"):
        evaluate(config, store)
    assert not bird.imported


@pytest.mark.parametrize("how", HOW)
def test_a_careless_loader_would_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: How):
    import sys

    import open_clip
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = shutil.copytree(built_in("clip"), tmp_path / "weights")
    bird = plant(folder, how, add_tokenizer_arguments)
    with pytest.raises(Exception):  # noqa: B017, PT011  # whatever it does with the canary's class
        open_clip.get_tokenizer(f"local-dir:{folder}")([""])
    assert bird.imported
    assert MODULE in bird.mark.read_text()


REFUSED = {
    "text_cfg.hf_model_name": ("text_cfg", {"hf_model_name": "canary/model"}),
    "text_cfg.tokenizer_mode": ("text_cfg", {"tokenizer_mode": "clips"}),
    "text_cfg.act_kwargs": ("text_cfg", {"act_kwargs": {"approximate": "tanh"}}),
    "vision_cfg.norm_kwargs": ("vision_cfg", {"norm_kwargs": {"eps": 1}}),
    "vision_cfg.timm_model_name": ("vision_cfg", {"timm_model_name": "hf_hub:canary/model"}),
    "model_cfg.custom_text": (None, {"custom_text": True}),
    "model_cfg.multimodal_cfg": (None, {"multimodal_cfg": {}}),
    "vision_cfg.layers": ("vision_cfg", {"layers": [3, 4, 6, 3]}),
    "vision_cfg.width": ("vision_cfg", {"width": "112"}),
    "vision_cfg.patch_size": ("vision_cfg", {"patch_size": True}),
    "vision_cfg.image_size": ("vision_cfg", {"image_size": 10**9}),
    "vision_cfg.mlp_ratio": ("vision_cfg", {"mlp_ratio": float("nan")}),
    "text_cfg.context_length": ("text_cfg", {"context_length": -1}),
    "model_cfg.embed_dim": (None, {"embed_dim": 0}),
    "model_cfg.quick_gelu": (None, {"quick_gelu": "yes"}),
}


@pytest.mark.parametrize("entry", REFUSED)
def test_open_clip_settings_must_be_plain_numbers_in_range(tmp_path: Path, entry: str):
    folder = shutil.copytree(built_in("clip"), tmp_path / "weights")
    path = folder / "open_clip_config.json"
    settings = json.loads(path.read_text())
    section, change = REFUSED[entry]
    (settings["model_cfg"][section] if section else settings["model_cfg"]).update(change)
    path.write_text(json.dumps(settings))
    with pytest.raises(IntegrityError, match=rf"{path}.* {entry.replace('.', '[.]')}\b"):
        load_scorer("clip", str(folder))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pickscore", {"hidden_act": "canary.Canary"}),
        ("pickscore", {"image_size": "64"}),
        ("aesthetics", {"patch_size": 0}),
        ("aesthetics", {"layer_norm_eps": [1e-5]}),
    ],
)
def test_settings_of_transformers_are_checked_too(tmp_path: Path, name: str, change: dict[str, Any]):
    folder = shutil.copytree(built_in(name), tmp_path / "weights")
    settings = json.loads((folder / "config.json").read_text())
    settings.get("vision_config", settings).update(change)
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(IntegrityError, match=next(iter(change))):
        load_scorer(name, str(folder))


def test_an_adapter_in_the_folder_is_not_loaded_over_the_weights(folders: Callable[[str], Path], tmp_path: Path):
    folder = shutil.copytree(folders("pickscore"), tmp_path / "weights")
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "nowhere"), "auto_mapping": None}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    assert checked("pickscore", folder) == checked("pickscore", folders("pickscore"))
