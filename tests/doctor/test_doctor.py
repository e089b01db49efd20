"""What `prefloop doctor` says of this machine and of a cache of the hub that the test makes."""

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from prefloop.cli import app
from prefloop.core.text import size
from prefloop.doctor.facts import Fact, as_text, cached_models, disk, hub, scorers, versions
from prefloop.store import PairStore
from typer.testing import CliRunner


def cached(cache: Path, repository: str, file: str, n_bytes: int) -> None:
    """A file of a repository, in the layout that the hub's client writes."""
    folder, commit, digest = cache / f"models--{repository.replace('/', '--')}", "c" * 40, f"{n_bytes:064d}"
    for path in (folder / "refs", folder / "blobs", folder / "snapshots" / commit):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "blobs" / digest).write_bytes(bytes(n_bytes))
    (folder / "snapshots" / commit / file).symlink_to(Path("../../blobs") / digest)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """HPS v2.1, and PickScore without its tokenizer."""
    folder = tmp_path / "hub"
    cached(folder, "xswu/HPSv2", "HPS_v2.1_compressed.pt", 3 << 20)
    cached(folder, "yuvalkirstain/PickScore_v1", "model.safetensors", 5 << 20)
    cached(folder, "yuvalkirstain/PickScore_v1", "config.json", 0)
    return folder


def by_name(facts: list[Fact]) -> dict[str, Fact]:
    return {fact.name: fact for fact in facts}


def test_scorers_are_ready_if_all_that_they_read_is_in_the_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    found = by_name(scorers(cache))
    assert {name for name, fact in found.items() if fact.ok} == {"hps", "hpsv2.1", "oracle"}
    assert (found["hps"].text, found["hps"].cure) == ("ready", None)
    assert found["hpsv2"].text == "lacks xswu/HPSv2/HPS_v2_compressed.pt"
    assert found["hpsv2"].cure == "`prefloop scorers fetch hpsv2`"
    clip = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    assert found["pickscore"].text == f"lacks {clip}/tokenizer.json"
    assert found["pickscore"].cure == (
        "`prefloop scorers fetch pickscore`; for the built-in world give --checkpoint pickscore=shapes"
    )
    assert found["pickscore"].values["missing"] == [f"{clip}/tokenizer.json"]
    assert (found["pickscore"].values["n_bytes"], found["pickscore"].values["n_missing_bytes"]) == (
        3_942_220_000,  # 3.94 GB and 2.22 MB
        2_220_000,
    )
    cached(cache, clip, "tokenizer.json", 1)
    assert by_name(scorers(cache))["pickscore"].ok
    assert found["aesthetics"].text == "lacks sac+logos+ava1-l14-linearMSE.pth, openai/clip-vit-large-patch14"
    assert found["vlm"].text == "lacks a checkpoint"
    assert "give --checkpoint vlm=http" in str(found["vlm"].cure)


def test_a_tokenizer_that_the_weights_repository_has_too_is_not_missing(cache: Path):
    cached(cache, "yuvalkirstain/PickScore_v1", "tokenizer.json", 1)
    assert by_name(scorers(cache))["pickscore"].ok


def test_a_link_to_a_blob_that_is_gone_is_not_a_cached_file(cache: Path):
    shutil.rmtree(cache / "models--xswu--HPSv2" / "blobs")
    assert not by_name(scorers(cache))["hps"].ok


def test_cached_models_are_listed_with_their_sizes_the_largest_first(cache: Path):
    cached(cache, "a/b", "model.safetensors", 5 << 20)
    total, *models = cached_models(cache)
    assert total.text == f"3 models, 13 MiB, in {cache}"
    assert [(fact.name, fact.text) for fact in models] == [
        ("a/b", "5 MiB"),
        ("yuvalkirstain/PickScore_v1", "5 MiB"),
        ("xswu/HPSv2", "3 MiB"),
    ]
    (empty,) = cached_models(cache / "none")
    assert empty.values["n_models"] == 0
    assert str(empty.cure).startswith("`hf download OWNER/NAME`")


def test_a_package_that_is_missing_has_its_install_command():
    found = by_name(versions(["torch", "no-such-package"]))
    assert found["torch"].ok
    assert found["no-such-package"].text == "not installed"
    assert found["no-such-package"].cure == "pip install no-such-package"
    assert found["python"].text == ".".join(map(str, __import__("sys").version_info[:3]))


def test_the_disk_is_that_of_the_folder_where_the_store_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    absent = disk(tmp_path / "not" / "yet")
    assert absent.values["exists"] is False
    assert abs(absent.values["free_bytes"] - shutil.disk_usage(tmp_path).free) < 1 << 30
    assert "`prefloop generate` or `prefloop store import` creates the store" in str(absent.cure)
    assert not (tmp_path / "not").exists()
    assert disk(PairStore.create(tmp_path / "store").path).values["exists"] is True
    monkeypatch.setattr("prefloop.doctor.facts.LITTLE_SPACE", 1 << 62)
    full = disk(tmp_path / "store")
    assert not full.ok
    assert (
        str(full.cure)
        == "checkpoints and images may not fit: name a folder on a larger disk with --store and --output-dir"
    )


def test_the_network_is_asked_only_if_told_to(monkeypatch: pytest.MonkeyPatch):
    assert hub().values == {"state": "offline"}  # as these tests run
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub().values == {"state": "not tried"}
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.accept()
        assert hub(network=True).values == {"state": "reachable"}
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://localhost:{port}")
    assert not hub(network=True).ok


def test_the_command_prints_every_section_and_the_same_as_json(tmp_path: Path):
    words = ["doctor", "--store", str(tmp_path / "none")]
    ended = CliRunner().invoke(app, [*words, "--json"])
    assert ended.exit_code == 0, ended.output
    facts: list[dict[str, Any]] = json.loads(ended.stdout)
    assert list(dict.fromkeys(fact["section"] for fact in facts)) == ["versions", "devices", "disk", "scorers", "hub"]
    cpu = next(fact for fact in facts if fact["name"] == "cpu")
    assert cpu["values"]["precisions"] == ["float32", "bfloat16"]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert size(memory) in cpu["text"]
    assert {"prefloop", "python", "torch", "diffusers", "transformers", "peft", "open_clip_torch", "duckdb"} == {
        fact["name"] for fact in facts if fact["section"] == "versions"
    }
    lines = as_text([Fact(**fact) for fact in facts]).splitlines()
    assert len(lines) == len(facts)
    assert all(fact["text"] in line and (fact["cure"] or "") in line for fact, line in zip(facts, lines, strict=True))
    assert not (tmp_path / "none").exists()
