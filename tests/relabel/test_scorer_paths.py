"""`--checkpoint` is a local path or a hub id; the error for a missing one names the command that downloads it."""

import shutil
from pathlib import Path

import pytest
from prefloop.cli import app
from prefloop.relabel.scorers.checkpoints import built_in
from typer.testing import CliRunner

RUNNER = CliRunner()


def checked(checkpoint: str, name: str = "clip") -> tuple[int, str]:
    ended = RUNNER.invoke(app, ["scorers", "check", name, "--checkpoint", f"{name}={checkpoint}"])
    assert ended.stdout == "", ended.exception
    (line,) = ended.stderr.splitlines()
    return ended.exit_code, line


@pytest.mark.parametrize(
    "checkpoint",
    [
        "folder/that/is/missing",
        "here/missing",  # the folder `here` exists
        "here/missing/open_clip_model.safetensors",
        "there/clip/notes.txt",  # not a weights file
        "there/my clip",
        "there",
        "there/",
        "../clip",
        "~/no-such-folder/clip",
        "there/cl\0ip",
        "there/" + "x" * 5000 + " ",
    ],
)
def test_a_missing_local_path_is_not_looked_up_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: str
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    code, line = checked(checkpoint)
    assert code == 1
    assert line == (
        f"prefloop: no checkpoint at {checkpoint!r} for clip; give a folder, a file, a hub id such as owner/name, or shapes"
    )


def test_a_relative_path_takes_precedence_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(built_in("clip"), tmp_path / "weights" / "clip")
    monkeypatch.chdir(tmp_path)
    ended = RUNNER.invoke(app, ["scorers", "check", "clip", "--checkpoint", "clip=weights/clip"])
    assert ended.exit_code == 0, ended.output


@pytest.mark.parametrize(
    ("checkpoint", "command"),
    [("owner/name", "hf download owner/name"), ("owner/name/file.pt", "hf download owner/name file.pt")],
)
def test_offline_errors_name_the_command_that_downloads(checkpoint: str, command: str):
    code, line = checked(checkpoint)
    assert code == 1
    assert line == (
        f"prefloop: {checkpoint} for clip is neither a local path nor in the hub's cache, and prefloop is offline: "
        f"HF_HUB_OFFLINE is set. With a network, `{command}` downloads it; `--checkpoint shapes` uses the built-in world's"
    )


def test_a_folder_named_like_the_official_checkpoint_is_not_used_instead_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(built_in("pickscore"), tmp_path / "yuvalkirstain" / "PickScore_v1")
    monkeypatch.chdir(tmp_path)
    ended = RUNNER.invoke(app, ["scorers", "check", "pickscore"])
    assert ended.exit_code == 1
    assert ended.stderr.splitlines() == [
        "prefloop: pickscore lacks yuvalkirstain/PickScore_v1: yuvalkirstain/PickScore_v1 cannot be downloaded: HF_HUB_OFFLINE "
        "is set. With a network, `prefloop scorers fetch pickscore` gets it (3.67 GiB); `--checkpoint pickscore=shapes` uses "
        "the built-in world's"
    ]


def test_without_a_network_the_error_says_that_the_hub_does_not_answer(monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens on this port
    code, line = checked("owner/name")
    assert code == 1
    assert "prefloop is offline: the hub does not answer. With a network, `hf download owner/name`" in line


def test_an_unreadable_weights_file_is_named(tmp_path: Path):
    folder = shutil.copytree(built_in("clip"), tmp_path / "weights")
    path = folder / "open_clip_model.safetensors"
    path.unlink()
    path.symlink_to("/proc/self/mem")  # reading its first byte fails
    assert checked(str(folder)) == (1, f"prefloop: cannot read {path}: Input/output error")
