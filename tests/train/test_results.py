"""A result's folder: its hashes, records of version 0.1, and names that could be paths or hub ids."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import content
import pytest
import torch
from prefloop.cli import app
from prefloop.core import hashing
from prefloop.core.hashing import RESULT_FILE, digests, fingerprint, sha256
from prefloop.core.hub import hub_id
from prefloop.core.ids import content_id
from prefloop.models.lineage import lineage
from prefloop.models.pipelines import load_pipeline
from prefloop.models.resolve import LORA_FILE, find_model, with_parts
from prefloop.store import IntegrityError, PairStore, PrefloopError
from prefloop.train.export.result import settle, write_card
from results import refused, rewrite
from typer.testing import CliRunner


def test_a_weight_file_that_has_changed_or_is_missing_is_named(lora: Path):
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
        os.utime(path, (1e9, 1e9))  # the same size and time: the change of its entry still tells
        assert sha256(path) != first


def test_a_remembered_hash_that_was_changed_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "REMEMBERED_FROM", 4)
    path = tmp_path / "large"
    path.write_bytes(b"large")
    os.utime(path, (1e9, 1e9))
    first = sha256(path)
    (note,) = (tmp_path / "cache").rglob("sha256/*")
    whole = note.read_text()
    for spoilt in ("", whole[:10], ("0" if whole[0] != "0" else "1") + whole[1:], whole.replace(" ", "")):
        note.write_text(spoilt)
        hashing._known.clear()  # as in another process
        assert sha256(path) == first
        assert note.read_text() == whole


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
import diffusers
from prefloop.models.resolve import find_model
from prefloop.train import TrainConfig
from prefloop.models.families import family_of
from prefloop.train.policy import Policy, load_unet
from prefloop.train.export.result import settle
model, output = find_model(sys.argv[1]), Path(sys.argv[2])
policy = Policy(load_unet(model), TrainConfig(output_dir="x", labelers=("me",), lora_rank=2, seed=1), family_of(model))
policy.save_weights(output)
policy.save_kohya(output, model)
policy.save_pipeline(output, model)
settle(output)
"""


@pytest.mark.slow  # two processes that load torch
def test_equal_trainings_give_equal_bytes_in_every_process(tiny_pipeline: Path, tmp_path: Path):
    orders = {seed: tmp_path / seed for seed in ("0", "1")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _SAVES, tiny_pipeline, folder],
            env=content.environment(PYTHONHASHSEED=seed),
            stderr=subprocess.PIPE,
        )
        for seed, folder in orders.items()
    ]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said.decode()
    first, second = (digests(folder) for folder in orders.values())
    assert {LORA_FILE, "kohya.safetensors", "model_index.json", "unet/config.json"} <= first.keys()
    assert first == second


def test_nothing_of_this_machine_is_in_the_configs_of_a_result(tiny_pipeline: Path, tmp_path: Path):

    load_pipeline(find_model(str(tiny_pipeline)), "cpu", torch.float32).save_pretrained(tmp_path)
    before = {name: sha256(tmp_path / name) for name in digests(tmp_path)}
    assert any(str(tiny_pipeline) in path.read_text() for path in tmp_path.rglob("*.json"))
    settle(tmp_path)
    assert not any(str(tiny_pipeline) in path.read_text() for path in tmp_path.rglob("*.json"))
    assert {name for name in before if before[name] != sha256(tmp_path / name)} >= {"model_index.json"}
    assert load_pipeline(find_model(str(tmp_path)), "cpu", torch.float32)


def first_format(folder: Path, base: str, base_id: object, **config: Any) -> None:
    (folder / RESULT_FILE).write_text(json.dumps({"base_model": base, "base_model_id": str(base_id), "config": config}))


def test_a_record_of_version_0_1_is_taken_up_where_its_base_can_be_told(
    lora: Path, tiny_pipeline: Path, tmp_path: Path
):
    base = find_model(str(tiny_pipeline))
    today = find_model(str(lora)).model_id
    first_format(lora, base.name, base.model_id, model=base.name)
    assert find_model(str(lora)).model_id == today
    # trained on a result: config.model names it, its id then was of the pipeline at the bottom and its own files
    second = Path(shutil.copytree(lora, tmp_path / "second"))
    old_id = content_id(base.model_id.bytes + fingerprint(lora).bytes)
    first_format(second, base.name, old_id, model="tuned")
    found = find_model(str(second))
    assert found.base is not None
    assert Path(found.base.source) == lora
    third = Path(shutil.copytree(lora, tmp_path / "third"))
    first_format(third, base.name, content_id(base.model_id.bytes + fingerprint(second).bytes), model="second")
    assert len(find_model(str(third)).composition.loras) == 3
    shutil.rmtree(lora)
    assert "was trained on tuned, which does not exist" in refused(second)
    first_format(second, base.name, base.model_id, model=base.name, vae=str(tiny_pipeline))
    assert "kept no hash of it" in refused(second)
    first_format(second, base.name, base.model_id, model=base.name, vae="owner/vae")
    assert find_model(str(second)).composition.vae is not None


def test_a_record_by_hand_that_names_a_base_is_enough_but_for_a_card(store: PairStore, lora: Path, tiny_pipeline: Path):
    (lora / RESULT_FILE).write_text(json.dumps({"base_model": str(tiny_pipeline)}))
    found = find_model(str(lora))
    assert found.base is not None
    assert found.base.source == str(tiny_pipeline)
    with pytest.raises(IntegrityError, match=f"{lora / RESULT_FILE} lacks what a card tells"):
        write_card(lora, store)


def test_what_train_wrote_last_is_the_model(lora: Path, tiny_pipeline: Path):
    shutil.copytree(tiny_pipeline, lora, dirs_exist_ok=True)
    assert find_model(str(lora)).kind == "lora"
    rewrite(lora, output="pipeline")
    assert find_model(str(lora)).kind == "pipeline"


@pytest.fixture
def cached(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny pipeline as owner/tiny in the hub's cache on this machine, at two commits; main is the second."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--owner--tiny"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(tiny_pipeline, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("b" * 40)
    return repository


def test_a_base_on_the_hub_is_the_commit_it_was(cached: Path, lora: Path):
    base = find_model("owner/tiny")
    assert lineage(base, lora) == {"hub": "owner/tiny", "revision": None, "commit": "b" * 40, "id": str(base.model_id)}
    rewrite(lora, trained_on=lineage(base, lora))
    (cached / "refs" / "main").write_text("a" * 40)
    found = find_model(str(lora))
    assert found.base is not None
    assert (found.base.model_id, found.base.revision) == (base.model_id, "b" * 40)
    assert load_pipeline(found, "cpu", torch.float32)


def test_a_path_is_not_taken_for_a_hub_id(cached: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(
        PrefloopError, match=r"the folder models exists, but sd15 is not in it; .*`hf download models/sd15`"
    ):
        find_model("models/sd15")
    with pytest.raises(PrefloopError, match="there is no U-Net models/sd15: the folder models exists"):
        with_parts(find_model("shapes"), unet="models/sd15")
    (tmp_path / "owner").mkdir()
    assert find_model("owner/tiny").model_id == hub_id("owner/tiny", None)  # it is in the cache
    for name in ("a b/c", "models/sd15\0", "-x/y", "a/b/c"):
        with pytest.raises(PrefloopError, match="there is no model"):
            find_model(name)
    # and the other way round
    rewrite(lora, trained_on=lineage(find_model("owner/tiny"), lora))
    (tmp_path / "owner" / "tiny").mkdir()
    assert "here is a folder with that name" in refused(lora)
    assert cached.exists()


def test_what_cannot_be_fetched_says_both_readings_and_the_command():
    with pytest.raises(PrefloopError) as caught:
        load_pipeline(find_model("nobody/nothing"), "cpu", torch.float32)
    (line,) = str(caught.value).splitlines()
    assert caught.value.exit_code == 1
    assert line == (
        "cannot load the model nobody/nothing: there is no such folder here, and as a hub id it is not on this machine while "
        "the hub cannot be reached (offline); where there is network, `hf download nobody/nothing` fetches it"
    )
    from prefloop.relabel.scorers.checkpoints import from_hub

    with pytest.raises(PrefloopError, match="`hf download nobody/nothing` fetches"):
        from_hub("clip", "nobody/nothing")
    with pytest.raises(PrefloopError, match=r"`hf download nobody/nothing head.pt` fetches"):
        from_hub("clip", "nobody/nothing/head.pt")
