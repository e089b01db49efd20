"""`scorers fetch` downloads what the scorers' classes name, here from a server that answers as the hub does."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import little_hub
import pytest
from little_scorers import Redness
from prefloop.cli import app
from prefloop.core.download import download
from prefloop.core.errors import IntegrityError, PrefloopError
from prefloop.relabel.scorers import pickscore
from prefloop.relabel.scorers.checkpoints import built_in
from prefloop.relabel.scorers.sources import Source
from typer.testing import CliRunner, Result

CLIP = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
CONTENT = bytes(range(256)) * 40  # 10,240 bytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Remote(Redness):
    """Reads one file of a server that is not the hub."""

    name = "remote"
    reads: tuple[Source, ...] = ()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[little_hub.Hub]:
    """Has PickScore's files, with the built-in world's small weights."""
    with little_hub.serving() as hub:
        little_hub.use(monkeypatch, hub.address, tmp_path)
        folder = built_in("pickscore")
        hub.files = {
            f"{pickscore.OFFICIAL}/{file}": (folder / file).read_bytes()
            for file in ("config.json", "model.safetensors")
        }
        hub.files[f"{CLIP}/tokenizer.json"] = (folder / "tokenizer.json").read_bytes()
        hub.files["head.pth"] = CONTENT
        yield hub


@pytest.fixture
def other_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """PickScore with the hash of the built-in world's weights."""
    digest = hashlib.sha256((built_in("pickscore") / "model.safetensors").read_bytes()).hexdigest()
    weights = replace(pickscore.WEIGHTS, sha256={"model.safetensors": digest})
    monkeypatch.setattr(pickscore, "WEIGHTS", weights)
    monkeypatch.setattr(pickscore.PickScore, "reads", (weights, pickscore.TOKENIZER))


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["scorers", *words])


@pytest.mark.usefixtures("other_hash")
def test_fetched_weights_are_used_without_a_network(
    hub: little_hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ended = run("fetch", "pickscore", "--json")
    assert ended.exit_code == 0, ended.output
    weights, tokenizer = json.loads(ended.stdout)
    assert weights["path"].startswith(str(tmp_path / "hub"))
    assert tokenizer["name"] == f"{CLIP}/tokenizer.json"
    downloaded = {name for method, name, _ in hub.requests if method == "GET"}
    assert downloaded == hub.files.keys() - {"head.pth"}  # of CLIP's repository nothing but the tokenizer
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    n_requests = len(hub.requests)
    assert run("fetch", "pickscore").stdout.splitlines()[-1] == "everything is here"
    checked = run("check", "pickscore")
    assert checked.exit_code == 0, checked.output
    assert "pass" in checked.stdout
    assert len(hub.requests) == n_requests


@pytest.mark.usefixtures("hub")
def test_another_file_than_the_published_one_is_refused():
    ended = run("fetch", "pickscore")
    assert ended.exit_code == 5
    assert "model.safetensors is not the published file: sha256" in ended.stderr
    assert "expected ef31ef6fc5ff4d9b…" in ended.stderr


@pytest.mark.usefixtures("other_hash")
def test_a_file_that_is_not_what_the_hub_says_it_is_is_refused(hub: little_hub.Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pickscore.PickScore, "reads", (replace(pickscore.WEIGHTS, sha256={}),))
    hub.claimed[f"{pickscore.OFFICIAL}/model.safetensors"] = "a" * 64
    ended = run("fetch", "pickscore")
    assert ended.exit_code == 5
    assert "expected aaaaaaaaaaaaaaaa…" in ended.stderr


def test_a_dry_run_asks_nobody_and_prints_what_is_missing_and_how_much(hub: little_hub.Hub, tmp_path: Path):
    ended = run("fetch", "hps", "hpsv2.1", "aesthetics", "--dry-run")
    assert ended.exit_code == 0, ended.output
    assert ended.stdout.splitlines() == [
        "hps          1.84 GiB       missing  xswu/HPSv2/HPS_v2.1_compressed.pt",
        "aesthetics   3.54 MiB       missing  sac+logos+ava1-l14-linearMSE.pth",
        "aesthetics   1.59 GiB       missing  openai/clip-vit-large-patch14",
        # 1,972,490,005 + 3,712,000 + 1,710,540,580 bytes
        "to download: 3.43 GiB",
    ]
    assert hub.requests == []
    assert not (tmp_path / "hub").exists()


def test_without_a_network_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    ended = run("fetch", "hps")
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.stderr.splitlines() == [
        "prefloop: cannot fetch xswu/HPSv2/HPS_v2.1_compressed.pt: HF_HUB_OFFLINE is set; fetch on a machine with a network and "
        f"copy its {tmp_path}"
    ]
    for name, why in (("oracle", "needs no weights"), ("vlm", "runs on a server"), ("nope", "unknown scorer")):
        ended = run("fetch", name)
        assert ended.exit_code == 2
        assert why in ended.stderr


@pytest.mark.usefixtures("hub")
def test_what_the_hub_does_not_have_is_named():
    ended = run("fetch", "hps")
    assert ended.exit_code == 1
    assert "cannot download HPS_v2.1_compressed.pt of xswu/HPSv2: 404" in ended.stderr


def test_a_file_of_another_server_is_kept_under_its_hash_with_a_manifest(
    hub: little_hub.Hub, monkeypatch: pytest.MonkeyPatch
):
    url = f"{hub.address}/head.pth"
    source = Source(files=("head.pth",), url=url, n_bytes=len(CONTENT), sha256={"head.pth": SHA256})
    monkeypatch.setattr(Remote, "reads", (source,))
    ended = run("fetch", "test_scorer_fetch:Remote", "--json")
    assert ended.exit_code == 0, ended.output
    path = Path(json.loads(ended.stdout)[0]["path"])
    assert (path.parent.name, path.read_bytes()) == (SHA256[:16], CONTENT)
    manifest = json.loads((path.parent / "manifest.json").read_text())
    assert manifest == {"url": url, "file": "head.pth", "sha256": SHA256, "bytes": 10_240}


def test_a_source_is_of_one_place_and_a_file_of_another_server_has_a_hash():
    wrong_ones: tuple[dict[str, Any], ...] = (
        {},
        {"repository": "a/b", "url": "http://c"},
        {"url": "http://c", "files": ("d",)},
    )
    for wrong in wrong_ones:
        with pytest.raises(ValueError, match=r"source is of|needs the name and the sha256"):
            Source(**wrong)


def test_an_interrupted_download_is_continued(hub: little_hub.Hub, tmp_path: Path):
    hub.breaks_after = 1000
    target = tmp_path / "new" / "head.pth"
    with pytest.raises(PrefloopError, match="broke off; the same command continues it"):
        download(f"{hub.address}/head.pth", target, SHA256)
    assert not target.exists()
    download(f"{hub.address}/head.pth", target, SHA256)
    assert target.read_bytes() == CONTENT
    assert [asked for _, _, asked in hub.requests] == [None, "bytes=1000-"]
    assert [path.name for path in target.parent.iterdir()] == ["head.pth"]


def test_a_download_with_another_hash_is_removed(hub: little_hub.Hub, tmp_path: Path):
    with pytest.raises(IntegrityError, match=f"sha256 {SHA256[:16]}…, expected 0000000000000000…"):
        download(f"{hub.address}/head.pth", tmp_path / "head.pth", "0" * 64)
    assert list(tmp_path.glob("*head*")) == []
    with pytest.raises(PrefloopError, match="the server answers 404"):
        download(f"{hub.address}/none.pth", tmp_path / "none.pth", SHA256)
    with pytest.raises(PrefloopError, match="not an http address"):
        download("file:///etc/hostname", tmp_path / "none.pth", SHA256)
