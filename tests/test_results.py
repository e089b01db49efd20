"""A result's folder is from outside: hashes, odd prefloop.json, hostile weights, names that could be paths or hub ids."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import content
import pytest
import torch
from peft import LoraConfig
from prefloop.cli import app
from prefloop.generate.pipelines import load_pipeline
from prefloop.store import IntegrityError, PairStore, PrefloopError, hashing
from prefloop.store.hashing import RESULT_FILE, digests, fingerprint, sha256
from prefloop.store.hub import hub_id
from prefloop.store.ids import content_id
from prefloop.store.lineage import DEEPEST, lineage
from prefloop.store.loading import load_unet
from prefloop.store.models import LORA_FILE, find_model, with_parts
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner


def write_lora(folder: Path, unet: Any) -> None:
    from diffusers import StableDiffusionPipeline
    from peft.utils import get_peft_model_state_dict

    unet.add_adapter(LoraConfig(r=2, lora_alpha=4, init_lora_weights="gaussian", target_modules=["to_q", "to_k"]))
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                parameter += 0.3
    settings = unet.peft_config["default"].to_dict()
    layers: dict[str, Any] = get_peft_model_state_dict(unet)
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, unet_lora_adapter_metadata=settings)


@pytest.fixture(scope="module")
def _lora(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "tuned"
    base = find_model(str(tiny_pipeline))
    write_lora(folder, load_unet(base))
    told = {"output": "lora", "base_model": base.name, "trained_on": lineage(base, folder), "files": digests(folder)}
    (folder / RESULT_FILE).write_text(json.dumps(told))
    return folder


@pytest.fixture
def lora(_lora: Path, tmp_path: Path) -> Path:
    """A LoRA on the tiny pipeline, as train leaves it."""
    return Path(shutil.copytree(_lora, tmp_path / "tuned"))


def told(folder: Path, **changes: Any) -> None:
    path = folder / RESULT_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path | str) -> str:
    """The one line with which a model is refused as damaged."""
    with pytest.raises(IntegrityError) as caught:
        load_pipeline(find_model(str(folder)), "cpu", torch.float32)
    (line,) = str(caught.value).splitlines()
    assert caught.value.exit_code == 5
    return line


# --- hashes


def test_a_weight_file_that_has_changed_or_is_missing_is_named(lora: Path):
    assert find_model(str(lora)).kind == "lora"
    path = lora / LORA_FILE
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert f"{path} has changed since train wrote it" in refused(lora)
    data[-5] ^= 1
    path.write_bytes(data)
    told(lora, files=digests(lora) | {"kohya.safetensors": "0" * 64})
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


def test_no_command_hashes_a_model_twice(
    store: PairStore, lora: Path, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    content.add_labeler(store, "me")
    for pair in content.fill(store, n_prompts=4):
        content.add_label(store, pair, "me", "a", margin=1.0)
    store.absorb()
    base = Path(shutil.copytree(tiny_pipeline, tmp_path / "base"))
    told(lora, trained_on=lineage(find_model(str(base)), lora))
    for path in (*base.rglob("*.*"), *lora.rglob("*.*")):
        os.utime(path, (1e9, 1e9))
    hashing._known.clear()
    hashed, slow = [], hashing._hashed
    monkeypatch.setattr(hashing, "_hashed", lambda path: hashed.append(path) or slow(path))
    words = ["train", "--model", lora, "--labels", "me", "--store", store.path, "--output-dir", tmp_path / "second"]
    words += ["--max-train-steps", 1, "--train-batch-size", 1, "--resolution", 32, "--lora-rank", 1, "--cpu"]
    ended = CliRunner().invoke(app, [str(word) for word in words])
    assert ended.exit_code == 0, ended.output
    below = [path for path in hashed if path.is_relative_to(base) or path.is_relative_to(lora)]
    assert len(below) == len(set(below)) == len(digests(base)) + len(digests(lora))


_SAVES = """
import sys
from pathlib import Path
import diffusers
from prefloop.store.models import find_model
from prefloop.train import TrainConfig
from prefloop.train.family import family_of
from prefloop.train.policy import Policy, load_unet
from prefloop.train.result import settle
model, output = find_model(sys.argv[1]), Path(sys.argv[2])
policy = Policy(load_unet(model), TrainConfig(output_dir="x", labels=("me",), lora_rank=2, seed=1))
policy.save_weights(output, family_of(model))
policy.save_kohya(output, family_of(model), model)
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
    from prefloop.train.result import settle

    load_pipeline(find_model(str(tiny_pipeline)), "cpu", torch.float32).save_pretrained(tmp_path)
    before = {name: sha256(tmp_path / name) for name in digests(tmp_path)}
    assert any(str(tiny_pipeline) in path.read_text() for path in tmp_path.rglob("*.json"))
    settle(tmp_path)
    assert not any(str(tiny_pipeline) in path.read_text() for path in tmp_path.rglob("*.json"))
    assert {name for name in before if before[name] != sha256(tmp_path / name)} >= {"model_index.json"}
    assert load_pipeline(find_model(str(tmp_path)), "cpu", torch.float32)


# --- odd prefloop.json


def deep(folder: Path) -> None:
    (folder / RESULT_FILE).write_text("[" * 100_000)


ODD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "not JSON": (lambda f: (f / RESULT_FILE).write_text("{'a': 1"), "cannot be read as JSON"),
    "not text": (lambda f: (f / RESULT_FILE).write_bytes(b"\xff\xfe{}"), "cannot be read as JSON"),
    "nested": (deep, "cannot be read as JSON"),
    "a folder": (lambda f: ((f / RESULT_FILE).unlink(), (f / RESULT_FILE).mkdir()), "cannot be read as JSON"),
    "a list": (lambda f: (f / RESULT_FILE).write_text("[]"), "holds a list where train writes an object"),
    "empty": (lambda f: (f / RESULT_FILE).write_text("{}"), "no base_model"),
    "labels": (lambda f: told(f, labels=[1]), "labels is '[1]'"),
    "labelers": (lambda f: told(f, labelers={"a": []}), "labelers.a is '[]'"),
    "scorers": (lambda f: told(f, labelers={"a": {"scorers": {"b": 1}}}), "labelers.a.scorers"),
    "config": (lambda f: told(f, config="x"), "config is 'x'"),
    "files": (lambda f: told(f, files={LORA_FILE: 1}), "files is"),
    "base_model": (lambda f: told(f, base_model={}), "base_model is"),
    "no place": (lambda f: told(f, trained_on={}), "trained_on.id is 'None'"),
    "no folder": (lambda f: told(f, trained_on={"id": str(hub_id("a/b", None))}), "trained_on is"),
    "NUL": (lambda f: told(f, trained_on={"folder": "/a\0b", "id": "1"}), "trained_on.folder"),
    "hub id": (lambda f: told(f, trained_on={"hub": "../a", "id": str(hub_id("../a", None))}), "trained_on.hub"),
    "other hub id": (lambda f: told(f, trained_on={"hub": "a/c", "id": str(hub_id("a/b", None))}), "has changed"),
    "built-in": (lambda f: told(f, trained_on={"built_in": ["x"], "id": "1"}), "no built-in model"),
    "part": (
        lambda f: told(f, trained_on=json.loads((f / RESULT_FILE).read_text())["trained_on"] | {"vae": 1}),
        "trained_on.vae is not an object",
    ),
    "itself": (lambda f: told(f, trained_on={"folder": str(f), "id": str(hub_id("a/b", None))}), "trained on itself"),
    "first format, itself": (lambda f: told(f, trained_on=None, base_model=str(f)), "trained_on is 'None'"),
}


@pytest.mark.parametrize("how", ODD)
def test_an_odd_record_is_one_line(lora: Path, how: str):
    spoil, line = ODD[how]
    spoil(lora)
    said = refused(lora)
    assert line in said
    assert str(lora) in said


def test_a_record_that_goes_in_circles_or_too_deep_ends(lora: Path, tmp_path: Path):
    other = Path(shutil.copytree(lora, tmp_path / "other"))
    for folder, base in ((lora, other), (other, lora)):
        told(folder, trained_on={"folder": str(base), "id": str(hub_id("a/b", None))})
    assert "trained on itself" in refused(lora)
    below = lora
    for number in range(DEEPEST + 1):
        above = Path(shutil.copytree(other, tmp_path / f"{number}"))
        told(above, trained_on={"folder": str(below), "id": str(hub_id("a/b", None))})
        below = above
    assert f"trained on more than {DEEPEST} models" in refused(below)


# --- hostile weights


def respell(folder: Path, changes: dict[str, Any], metadata: object = None) -> None:
    """Write the LoRA again with other settings in its header or other layers, as if train had."""
    path = folder / LORA_FILE
    state = load_file(path)
    for name in [name for name in changes if changes[name] is None]:
        del state[name]
    state |= {name: value for name, value in changes.items() if value is not None}
    header = {} if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)}
    save_file(state, path, header | {"format": "pt"})
    told(folder, files=digests(folder))


LAYER = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"
HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pickle": (lambda f: (f / LORA_FILE).write_bytes(pickle.dumps({"a": 1})), "that can be loaded safely"),
    "cut off": (lambda f: (f / LORA_FILE).write_bytes((f / LORA_FILE).read_bytes()[:-9]), "that can be loaded safely"),
    "one matrix": (lambda f: respell(f, {f"{LAYER}.lora_A.weight": None}), "do not belong together"),
    "another shape": (
        lambda f: respell(f, {f"{LAYER}.lora_A.weight": torch.ones(2, 5)}),
        f"does not fit the U-Net it was trained on: {LAYER.removeprefix('unet.')}",
    ),
    "two ranks": (
        lambda f: respell(
            f, {f"{LAYER}.lora_A.weight": torch.ones(3, 16), f"{LAYER}.lora_B.weight": torch.ones(16, 3)}
        ),
        "2 ranks",
    ),
    "no such layer": (
        lambda f: respell(f, {"unet.a.lora_A.weight": torch.ones(2, 5), "unet.a.lora_B.weight": torch.ones(5, 2)}),
        "does not fit",
    ),
    "no linear layer": (
        lambda f: respell(
            f, {"unet.conv_in.lora_A.weight": torch.ones(2, 4), "unet.conv_in.lora_B.weight": torch.ones(16, 2)}
        ),
        "does not fit",
    ),
    "text encoder": (
        lambda f: respell(f, {"text_encoder.a.lora_A.weight": torch.ones(2, 5)}),
        "only LoRAs of a U-Net",
    ),
    "dora": (lambda f: respell(f, {}, {"unet.use_dora": True}), "made with use_dora"),
    "bias": (lambda f: respell(f, {}, {"unet.bias": "all"}), "made with bias"),
    "alpha": (lambda f: respell(f, {}, {"unet.lora_alpha": "4"}), "alpha '4'"),
    "infinite": (lambda f: respell(f, {}, {"unet.lora_alpha": float("inf")}), "alpha inf"),
    "rank": (lambda f: respell(f, {}, {"unet.r": 7}), "says rank 7"),
    "list": (lambda f: respell(f, {}, [1]), "not those of a LoRA"),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_or_broken_lora_is_one_line(lora: Path, how: str):
    spoil, line = HOSTILE[how]
    spoil(lora)
    told(lora, files=digests(lora))
    said = refused(lora)
    assert line in said
    assert LORA_FILE in said


def test_settings_in_a_loras_header_import_nothing(lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "megatron").mkdir()
    (tmp_path / "megatron" / "core.py").write_text("from pathlib import Path\nPath('sang').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["to_q", "to_k"], "peft_type": "LORA"}
    settings |= {"megatron_config": {"a": 1}, "megatron_core": "megatron.core"}
    respell(lora, {}, {f"unet.{name}": value for name, value in settings.items()})
    assert load_pipeline(find_model(str(lora)), "cpu", torch.float32)
    assert load_unet(find_model(str(lora)))
    assert not (tmp_path / "sang").exists()
    # diffusers' own way imports it
    pipeline: Any = load_pipeline(find_model(str(lora)).root, "cpu", torch.float32)
    with pytest.raises(Exception, match=r".*"):
        pipeline.load_lora_weights(lora)
    assert (tmp_path / "sang").exists()


def test_a_pickle_beside_a_unet_is_not_loaded(lora: Path, tiny_pipeline: Path):
    (lora / LORA_FILE).unlink()
    shutil.copytree(tiny_pipeline / "unet", lora / "unet")
    state = load_file(lora / "unet" / "diffusion_pytorch_model.safetensors")
    (lora / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(state, lora / "unet" / "diffusion_pytorch_model.bin")
    told(lora, output="unet", files=digests(lora))
    assert f"cannot load the U-Net {lora}: " in refused(lora)


# --- prefloop.json of version 0.1


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
    assert "was trained on tuned, which is not there" in refused(second)
    first_format(second, base.name, base.model_id, model=base.name, vae=str(tiny_pipeline))
    assert "kept no hash of it" in refused(second)
    first_format(second, base.name, base.model_id, model=base.name, vae="owner/vae")
    assert find_model(str(second)).composition.vae is not None


def test_a_record_by_hand_that_names_a_base_is_enough(lora: Path, tiny_pipeline: Path):
    (lora / RESULT_FILE).write_text(json.dumps({"base_model": str(tiny_pipeline)}))
    found = find_model(str(lora))
    assert found.base is not None
    assert found.base.source == str(tiny_pipeline)


def test_what_train_wrote_last_is_the_model(lora: Path, tiny_pipeline: Path):
    shutil.copytree(tiny_pipeline, lora, dirs_exist_ok=True)
    assert find_model(str(lora)).kind == "lora"
    told(lora, output="pipeline")
    assert find_model(str(lora)).kind == "pipeline"


# --- paths and hub ids


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
    told(lora, trained_on=lineage(base, lora))
    (cached / "refs" / "main").write_text("a" * 40)
    found = find_model(str(lora))
    assert found.base is not None
    assert (found.base.model_id, found.base.revision) == (base.model_id, "b" * 40)
    assert load_pipeline(found, "cpu", torch.float32)


def test_a_path_is_not_taken_for_a_hub_id(cached: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(
        PrefloopError, match=r"the folder models is here, but sd15 is not in it; .*`hf download models/sd15`"
    ):
        find_model("models/sd15")
    with pytest.raises(PrefloopError, match="there is no U-Net models/sd15: the folder models is here"):
        with_parts(find_model("shapes"), unet="models/sd15")
    (tmp_path / "owner").mkdir()
    assert find_model("owner/tiny").model_id == hub_id("owner/tiny", None)  # it is in the cache
    for name in ("a b/c", "models/sd15\0", "-x/y", "a/b/c"):
        with pytest.raises(PrefloopError, match="there is no model"):
            find_model(name)
    # and the other way round
    told(lora, trained_on=lineage(find_model("owner/tiny"), lora))
    (tmp_path / "owner" / "tiny").mkdir()
    assert "a folder of that name is here" in refused(lora)
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
    from prefloop.relabel.weights import from_hub

    with pytest.raises(PrefloopError, match="`hf download nobody/nothing` fetches"):
        from_hub("clip", "nobody/nothing")
    with pytest.raises(PrefloopError, match=r"`hf download nobody/nothing head.pt` fetches"):
        from_hub("clip", "nobody/nothing/head.pt")
