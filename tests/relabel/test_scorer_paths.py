"""What `--checkpoint` means: a local path, else a hub id; what is not there is named with the command that fetches it."""

import shutil
from pathlib import Path

import pytest
from prefloop.cli import app
from prefloop.relabel.scorers.checkpoints import built_in
from typer.testing import CliRunner

RUNNER = CliRunner()


def checked(given: str, name: str = "clip") -> tuple[int, str]:
    ended = RUNNER.invoke(app, ["scorers", "check", name, "--checkpoint", f"{name}={given}"])
    assert ended.stdout == "", ended.exception
    (line,) = ended.stderr.splitlines()
    return ended.exit_code, line


@pytest.mark.parametrize(
    "given",
    [
        "folder/that/is/missing",
        "here/missing",  # there is a folder `here`
        "here/missing/open_clip_model.safetensors",
        "there/clip/notes.txt",  # not a file of weights
        "there/my clip",
        "there",
        "there/",
        "../clip",
        "~/no-such-folder/clip",
        "there/cl\0ip",
        "there/" + "x" * 5000 + " ",
    ],
)
def test_a_local_path_that_is_missing_is_not_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    code, line = checked(given)
    assert code == 1
    assert line == (
        f"prefloop: there are no weights at {given!r} for clip; name a folder, a file, a hub id such as owner/name, or shapes"
    )


def test_a_relative_path_is_taken_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(built_in("clip"), tmp_path / "weights" / "clip")
    monkeypatch.chdir(tmp_path)
    ended = RUNNER.invoke(app, ["scorers", "check", "clip", "--checkpoint", "clip=weights/clip"])
    assert ended.exit_code == 0, ended.output


@pytest.mark.parametrize(
    ("given", "fetch"),
    [("owner/name", "hf download owner/name"), ("owner/name/file.pt", "hf download owner/name file.pt")],
)
def test_offline_errors_say_offline_and_the_command_that_fetches(given: str, fetch: str):
    code, line = checked(given)
    assert code == 1
    assert line == (
        f"prefloop: {given} for clip is neither a local path nor in the hub's cache, and prefloop is offline: "
        f"HF_HUB_OFFLINE is set. With a network, `{fetch}` fetches it; `--checkpoint shapes` takes the built-in world's"
    )


def test_a_folder_named_like_the_official_weights_is_not_taken_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(built_in("pickscore"), tmp_path / "yuvalkirstain" / "PickScore_v1")
    monkeypatch.chdir(tmp_path)
    ended = RUNNER.invoke(app, ["scorers", "check", "pickscore"])
    assert ended.exit_code == 1
    assert "`hf download yuvalkirstain/PickScore_v1` fetches it" in ended.stderr


def test_without_a_network_the_hub_is_said_not_to_answer(monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    code, line = checked("owner/name")
    assert code == 1
    assert "prefloop is offline: the hub does not answer. With a network, `hf download owner/name`" in line


def test_weights_that_cannot_be_read_are_named(tmp_path: Path):
    folder = shutil.copytree(built_in("clip"), tmp_path / "weights")
    path = folder / "open_clip_model.safetensors"
    path.unlink()
    path.symlink_to("/proc/self/mem")  # its first byte is nobody's
    assert checked(str(folder)) == (1, f"prefloop: cannot read {path}: Input/output error")
