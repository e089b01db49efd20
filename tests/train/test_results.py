"""A result's folder: its hashes, its record, and names that could be paths or hub ids."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import content
import pytest
import torch
from prefloop.cli import app
from prefloop.core import hashing
from prefloop.core.hashing import RESULT_FILE, digests, sha256
from prefloop.core.hub import hub_id
from prefloop.models.families import family_of
from prefloop.models.lineage import lineage
from prefloop.models.loading import load_component
from prefloop.models.names import LORA_FILE
from prefloop.models.parts import with_parts
from prefloop.models.pipelines import load_pipeline
from prefloop.models.resolve import find_model
from prefloop.store import IntegrityError, PairStore, PrefloopError
from prefloop.train import TrainConfig
from prefloop.train.export.result import canonicalize_files
from prefloop.train.export.write_card import write_card
from prefloop.train.policy import Policy
from results import refused, rewrite
from typer.testing import CliRunner


def test_a_changed_or_missing_weight_file_is_named(lora: Path):
    assert find_model(str(lora)).kind == "lora"
    path = lora / LORA_FILE
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert f"{path} has changed since train wrote it" in refused(lora)
    data[-5] ^= 1
    path.write_bytes(data)
    rewrite(lora, files=digests(lora) | {"kohya.safetensors": "0" * 64})
    assert f"{lora / 'kohya.safetensors'} is missing" in refused(lora)


def test_the_hash_of_a_file_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hashed, slow = [], hashing._hashed
    monkeypatch.setattr(hashing, "_hashed", lambda path: hashed.append(path) or slow(path))
    path = tmp_path / "large"
    for least, kept in ((4, True), (64, False)):
        monkeypatch.setattr(hashing, "REMEMBERED_FROM", least)
        hashed.clear()
        path.write_bytes(b"large")
        os.utime(path, (1e9, 1e9))
        first = sha256(path)
        assert (sha256(path), len(hashed)) == (first, 1)
        hashing._known.clear()  # as in another process
        assert (sha256(path), len(hashed)) == (first, 1 if kept else 2)
        path.write_bytes(b"other")
        os.utime(path, (1e9, 1e9))  # the same size and modification time: only ctime differs
        assert sha256(path) != first


def test_a_tampered_hash_record_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "REMEMBERED_FROM", 4)
    path = tmp_path / "large"
    path.write_bytes(b"large")
    os.utime(path, (1e9, 1e9))
    first = sha256(path)
    (record,) = (tmp_path / "cache").rglob("sha256/*")
    whole = record.read_text()
    for damaged in ("", whole[:10], ("0" if whole[0] != "0" else "1") + whole[1:], whole.replace(" ", "")):
        record.write_text(damaged)
        hashing._known.clear()  # as in another process
        assert sha256(path) == first
        assert record.read_text() == whole


@pytest.mark.slow(reason="trains a model")
def test_no_command_hashes_a_model_twice(
    store: PairStore, lora: Path, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    content.add_labeler(store, "me")
    for pair in content.fill(store, n_prompts=4):
        content.add_label(store, pair, "me", "a", margin=1.0)
    store.ingest()
    base = Path(shutil.copytree(tiny_pipeline, tmp_path / "base"))
    rewrite(lora, trained_on=lineage(find_model(str(base)), lora))
    for path in (*base.rglob("*.*"), *lora.rglob("*.*")):
        os.utime(path, (1e9, 1e9))
    hashing._known.clear()
    hashed, slow = [], hashing._hashed
    monkeypatch.setattr(hashing, "_hashed", lambda path: hashed.append(path) or slow(path))
    words = ["train", "--model", lora, "--labeler", "me", "--store", store.path, "--output-dir", tmp_path / "second"]
    words += ["--max-train-steps", 1, "--train-batch-size", 1, "--resolution", 32, "--lora-rank", 1, "--cpu"]
    ended = CliRunner().invoke(app, [str(word) for word in words])
    assert ended.exit_code == 0, ended.output
    below = [path for path in hashed if path.is_relative_to(base) or path.is_relative_to(lora)]
    assert len(below) == len(set(below)) == len(digests(base)) + len(digests(lora))


_SAVES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_results
test_results.save_everything(Path(sys.argv[2]), Path(sys.argv[3]))
"""


def save_everything(model_folder: Path, output: Path) -> None:
    model = find_model(str(model_folder))
    config = TrainConfig(output_dir="x", labelers=("me",), lora_rank=2, seed=1)
    policy = Policy(load_component(model), config, family_of(model))
    policy.save_weights(output)
    policy.save_kohya(output / "kohya.safetensors", model)
    policy.save_pipeline(output, model)
    canonicalize_files(output)
    (output / "hash").write_text(str(hash("prefloop") % 1000))


@pytest.mark.slow(reason="a process loads torch")
def test_equal_trainings_give_equal_bytes_in_every_process(tiny_pipeline: Path, tmp_path: Path):
    orders = [tmp_path / seed for seed in ("0", "1")]
    forked = content.forked(save_everything, tiny_pipeline, orders[0])  # its hash seed is 0
    fresh = subprocess.run(
        [sys.executable, "-c", _SAVES, Path(__file__).parent, tiny_pipeline, orders[1]],
        env=content.environment(PYTHONHASHSEED="1"),
        stderr=subprocess.PIPE,
        timeout=120,
    )
    assert fresh.returncode == 0, fresh.stderr.decode()
    forked.join(120)
    assert forked.exitcode == 0
    hashes = {(folder / "hash").read_text() for folder in orders}
    assert len(hashes) == 2
    for folder in orders:
        (folder / "hash").unlink()
    first, second = map(digests, orders)
    assert {LORA_FILE, "kohya.safetensors", "model_index.json", "unet/config.json"} <= first.keys()
    assert first == second


def test_configs_of_a_result_hold_no_path_of_this_machine(tiny_pipeline: Path, tmp_path: Path):
    load_pipeline(find_model(str(tiny_pipeline)), "cpu", torch.float32).save_pretrained(tmp_path)
    before = {name: sha256(tmp_path / name) for name in digests(tmp_path)}
    assert any(str(tiny_pipeline) in path.read_text() for path in tmp_path.rglob("*.json"))
    canonicalize_files(tmp_path)
    assert not any(str(tiny_pipeline) in path.read_text() for path in tmp_path.rglob("*.json"))
    assert {name for name in before if before[name] != sha256(tmp_path / name)} >= {"model_index.json"}
    assert load_pipeline(find_model(str(tmp_path)), "cpu", torch.float32)


def test_a_record_that_only_names_a_base_loads_but_gets_no_card(store: PairStore, lora: Path, tiny_pipeline: Path):
    (lora / RESULT_FILE).write_text(json.dumps({"base_model": str(tiny_pipeline)}))
    model = find_model(str(lora))
    assert model.base is not None
    assert model.base.source == str(tiny_pipeline)
    with pytest.raises(IntegrityError, match=f"a card cannot be written from {lora / RESULT_FILE}"):
        write_card(lora, store)


def test_the_record_says_which_of_several_models_in_a_folder_is_meant(lora: Path, tiny_pipeline: Path):
    shutil.copytree(tiny_pipeline, lora, dirs_exist_ok=True)
    assert find_model(str(lora)).kind == "lora"
    rewrite(lora, output="pipeline")
    assert find_model(str(lora)).kind == "pipeline"


@pytest.fixture
def cached(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny pipeline as owner/tiny in the local cache of the hub, at two commits; main is the second."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--owner--tiny"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(tiny_pipeline, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("b" * 40)
    return repository


def test_a_base_on_the_hub_is_loaded_at_its_recorded_commit(cached: Path, lora: Path):
    base = find_model("owner/tiny")
    assert lineage(base, lora) == {"hub": "owner/tiny", "revision": None, "commit": "b" * 40, "id": str(base.model_id)}
    rewrite(lora, trained_on=lineage(base, lora))
    (cached / "refs" / "main").write_text("a" * 40)
    model = find_model(str(lora))
    assert model.base is not None
    assert (model.base.model_id, model.base.revision) == (base.model_id, "b" * 40)
    assert load_pipeline(model, "cpu", torch.float32)


def test_a_path_is_not_taken_for_a_hub_id(cached: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(
        PrefloopError, match=r"the folder models exists, but sd15 is not in it; .*`hf download models/sd15`"
    ):
        find_model("models/sd15")
    with pytest.raises(PrefloopError, match="cannot find the U-Net models/sd15: the folder models exists"):
        with_parts(find_model("shapes"), init_from="models/sd15")
    (tmp_path / "owner").mkdir()
    assert find_model("owner/tiny").model_id == hub_id("owner/tiny", None)  # it is in the cache
    for name in ("a b/c", "models/sd15\0", "-x/y", "a/b/c"):
        with pytest.raises(PrefloopError, match="cannot find the model"):
            find_model(name)
    # and a hub id is not taken for a path
    rewrite(lora, trained_on=lineage(find_model("owner/tiny"), lora))
    (tmp_path / "owner" / "tiny").mkdir()
    assert "here is a folder with that name" in refused(lora)
    assert cached.exists()


def test_a_model_that_cannot_be_downloaded_is_explained_with_the_command_that_downloads_it():
    with pytest.raises(PrefloopError) as caught:
        load_pipeline(find_model("nobody/nothing"), "cpu", torch.float32)
    (line,) = str(caught.value).splitlines()
    assert caught.value.exit_code == 1
    assert line == (
        "cannot load the model nobody/nothing: no such folder exists, and as a hub id it is not in the cache, while the hub "
        "cannot be reached (offline); with network access, run `hf download nobody/nothing`"
    )
    from prefloop.relabel.scorers.checkpoints import from_hub

    with pytest.raises(PrefloopError, match="`hf download nobody/nothing` downloads"):
        from_hub("clip", "nobody/nothing")
    with pytest.raises(PrefloopError, match=r"`hf download nobody/nothing head.pt` downloads"):
        from_hub("clip", "nobody/nothing/head.pt")
