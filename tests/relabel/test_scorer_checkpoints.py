"""Bad weights files: one line, the right exit code, nothing executed, nothing scored."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from content import fill
from full_models import aesthetics_head, open_clip_folder
from prefloop.cli import app
from prefloop.core.hashing import sha256
from prefloop.relabel.scorers import aesthetics
from prefloop.relabel.scorers.checkpoints import built_in
from prefloop.store import IntegrityError, PairStore
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

RUNNER = CliRunner()
HTML = b"<!DOCTYPE html>\n<html><title>404</title>"


class Malicious:
    """Creates a folder when a careless loader unpickles it."""

    def __reduce__(self):
        return (os.mkdir, (os.environ["EXECUTED"],))


def without_key(source: Path, target: Path, key: str) -> None:
    state = load_file(source) if source.suffix == ".safetensors" else torch.load(source)["state_dict"]
    del state[key]
    save_file(state, target) if target.suffix == ".safetensors" else torch.save({"state_dict": state}, target)


def with_wrong_shape(source: Path, target: Path, key: str) -> None:
    state = load_file(source)
    state[key] = torch.zeros(3, 3)
    save_file(state, target)


PAGE = "is an HTML page; download it again"
UNSAFE = "does not contain weights that can be loaded safely"
FAULTS = {
    # scorer, file to damage, how, part of the line
    "page for PickScore": ("pickscore", "model.safetensors", lambda _, to: to.write_bytes(HTML), PAGE),
    "page for HPS": ("hps", "hps.pt", lambda _, to: to.write_bytes(HTML), PAGE),
    "page for CLIP": ("clip", "open_clip_model.safetensors", lambda _, to: to.write_bytes(HTML), PAGE),
    "page for the head": ("aesthetics", "head.safetensors", lambda _, to: to.write_bytes(HTML), PAGE),
    "cut off": ("pickscore", "model.safetensors", lambda of, to: to.write_bytes(of.read_bytes()[:-99]), UNSAFE),
    "empty": ("hps", "hps.pt", lambda _, to: to.write_bytes(b""), UNSAFE),
    "pickle": ("hps", "hps.pt", lambda _, to: to.write_bytes(pickle.dumps(Malicious())), UNSAFE),
    "torch pickle": ("hps", "hps.pt", lambda _, to: torch.save({"state_dict": Malicious()}, to), UNSAFE),
    "PickScore lacks a weight": (
        "pickscore",
        "model.safetensors",
        lambda of, to: without_key(of, to, "visual_projection.weight"),
        "does not fit CLIPModel: missing or with another shape: visual_projection.weight",
    ),
    "PickScore lacks its scale": (
        "pickscore",
        "model.safetensors",
        lambda of, to: without_key(of, to, "logit_scale"),
        "logit_scale",
    ),
    "PickScore of another shape": (
        "pickscore",
        "model.safetensors",
        lambda of, to: with_wrong_shape(of, to, "text_projection.weight"),
        "does not fit CLIPModel: missing or with another shape: text_projection.weight",
    ),
    "HPS lacks a weight": (
        "hps",
        "hps.pt",
        lambda of, to: without_key(of, to, "visual.proj"),
        'Missing key(s) in state_dict: "visual.proj"',
    ),
    "the head lacks a layer": (
        "aesthetics",
        "head.safetensors",
        lambda of, to: without_key(of, to, "layers.0.bias"),
        "is not an aesthetics head",
    ),
    "the head has an odd name": (
        "aesthetics",
        "head.safetensors",
        lambda of, to: save_file(load_file(of) | {"layers": torch.zeros(1)} | {"layers.9.weight": torch.zeros(1)}, to),
        "is not an aesthetics head",
    ),
    "the head is a vector": (
        "aesthetics",
        "head.safetensors",
        lambda of, to: save_file(load_file(of) | {"layers.2.weight": torch.zeros(1)}, to),
        "is not an aesthetics head",
    ),
    "settings": ("clip", "open_clip_config.json", lambda _, to: to.write_bytes(HTML), "open_clip_config.json"),
    "no tokenizer": ("pickscore", "tokenizer.json", lambda _, to: to.write_bytes(HTML), "has no CLIP tokenizer"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_weights_end_with_5_and_score_nothing(
    store: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
):
    name, file, damage, message = FAULTS[fault]
    monkeypatch.setenv("EXECUTED", str(tmp_path / "executed"))
    folder = shutil.copytree(built_in(name), tmp_path / "weights")
    (folder / file).unlink()
    damage(built_in(name) / file, folder / file)
    fill(store, 1)
    ended = RUNNER.invoke(app, ["relabel", "--scorer", name, "--checkpoint", str(folder), "--store", str(store.path)])
    assert (ended.exit_code, ended.stdout) == (5, ""), ended.output
    (line,) = [line for line in ended.stderr.splitlines() if line and "scoring by" not in line]  # the progress bar
    assert message in line
    assert not (tmp_path / "executed").exists()
    assert store.rows("select count(*) from scores") == [(0,)]
    assert store.rows("select count(*) from labels") == [(0,)]


def test_a_malicious_pickle_would_have_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EXECUTED", str(tmp_path / "executed"))
    pickle.loads(pickle.dumps(Malicious()))
    assert (tmp_path / "executed").exists()


def test_the_built_in_world_has_no_weights_for_some_scorers():
    ended = RUNNER.invoke(app, ["scorers", "check", "hpsv2", "--checkpoint", "shapes"])
    assert ended.exit_code == 2
    assert "the built-in world has no weights for hpsv2, only for aesthetics, clip, hps, pickscore\n" in ended.stderr


@pytest.mark.parametrize("words", [(), ("--checkpoint", "owner/name")])
def test_without_built_in_weights_an_error_does_not_offer_them(words: tuple[str, ...]):
    ended = RUNNER.invoke(app, ["scorers", "check", "hpsv3", *words])
    assert ended.exit_code == 1
    cure = "hf download owner/name" if words else "prefloop scorers fetch hpsv3"
    assert f"With a network, `{cure}`" in ended.stderr
    assert "built-in" not in ended.stderr


def test_one_scorer_under_two_names_is_refused(store: PairStore):
    words = ["relabel", "--scorer", "hps", "--scorer", "hpsv2.1", "--rule", "majority", "--store", str(store.path)]
    ended = RUNNER.invoke(app, [*words, "--checkpoint", str(built_in("hps"))])
    assert ended.exit_code == 2
    assert "two of hps, hpsv2.1 are the same scorer" in ended.stderr


def published_head(path: Path, bias: float = 5.2366458) -> None:
    """One layer with the known values: the norm, and the scores of the first and of the uniform unit vector."""
    w = np.zeros(768)
    w[0] = 4.5450524 - 5.2366458
    others = (4.8832849 - 5.2366458) * 768**0.5 - w[0]  # sum of the other values
    w[1:] = others / 767
    spread = (17.9956**2 - (w**2).sum()) / 2
    w[1] += spread**0.5  # moving two values apart keeps the sum and sets the norm
    w[2] -= spread**0.5
    torch.save({"layers.0.weight": torch.tensor(w[None]), "layers.0.bias": torch.tensor([bias])}, path)


def test_the_published_head_is_recognized_by_its_hash_and_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / aesthetics.HEAD
    published_head(path)
    # any other file of that name is refused
    with pytest.raises(IntegrityError, match=r"not the published file: sha256 .*, expected 21dd590f"):
        aesthetics.Aesthetics.check_weights(str(path))
    monkeypatch.setitem(aesthetics.PINS, aesthetics.HEAD, sha256(path))
    assert aesthetics.Aesthetics.check_weights(str(path)) == (
        "the published head: ‖w‖ 17.9956, b 5.2366, score(e₀) 4.5451, score(uniform) 4.8833"
    )
    published_head(path, bias=5.3)
    monkeypatch.setitem(aesthetics.PINS, aesthetics.HEAD, sha256(path))
    with pytest.raises(IntegrityError, match=r"is read wrongly: .* b 5.3000"):
        aesthetics.Aesthetics.check_weights(str(path))


def test_checking_aesthetics_prints_the_values_of_a_head_even_without_its_backbone(tmp_path: Path):
    aesthetics_head(tmp_path / "mine.pth")
    ended = RUNNER.invoke(app, ["scorers", "check", "aesthetics", "--checkpoint", str(tmp_path / "mine.pth")])
    assert ended.stdout.startswith("aesthetics    not the published head: ‖w‖ ")
    assert ended.exit_code == 1  # the backbone is on the hub, and HF_HUB_OFFLINE is set
    assert "openai/clip-vit-large-patch14" in ended.stderr


def test_a_head_for_another_backbone_is_refused(store: PairStore, tmp_path: Path):
    folder = shutil.copytree(built_in("aesthetics"), tmp_path / "weights")
    (folder / "head.safetensors").unlink()
    published_head(folder / "other.pth")
    fill(store, 1)
    words = ["relabel", "--scorer", "aesthetics", "--checkpoint", str(folder), "--store", str(store.path)]
    ended = RUNNER.invoke(app, words)
    assert ended.exit_code == 5
    assert "takes embeddings of 768 values" in ended.stderr


def test_an_open_clip_checkpoint_of_another_architecture_is_refused(store: PairStore, tmp_path: Path):
    open_clip_folder(tmp_path / "narrow", "hps.pt", wrapped=True)
    folder = shutil.copytree(built_in("hps"), tmp_path / "weights")
    shutil.copy(tmp_path / "narrow" / "hps.pt", folder / "hps.pt")
    fill(store, 1)
    ended = RUNNER.invoke(app, ["relabel", "--scorer", "hps", "--checkpoint", str(folder), "--store", str(store.path)])
    assert ended.exit_code == 5
    assert "does not fit" in ended.stderr
