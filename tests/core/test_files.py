"""Atomic files: whole under their name or not there, on disk when the call returns, and nothing left after a failure."""

import os
from pathlib import Path

import pytest
from prefloop.core.errors import WriteError
from prefloop.core.files import atomic_file, atomic_folder, write_atomic


def test_a_file_keeps_its_old_content_until_the_new_one_is_complete(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("no"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_no_temporary_one(tmp_path: Path, error: BaseException):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail_halfway() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(WriteError if isinstance(error, OSError) else type(error)):
        fail_halfway()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("sync_name", [True, False])
def test_bytes_are_synced_before_the_rename_and_the_name_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync_name: bool
):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(Path(os.readlink(f"/proc/self/fd/{fd}"))), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *both: (calls.append("rename"), replace(*both)))
    write_atomic(tmp_path / "file", b"data", sync_name=sync_name)
    temporary = tmp_path / f".file.{os.getpid()}.tmp"
    assert calls == [temporary, "rename", *[tmp_path] * sync_name]


def test_the_parent_folder_is_created_only_if_asked(tmp_path: Path):
    path = tmp_path / "new" / "file"
    with pytest.raises(WriteError, match=r"cannot write .*/new/file \(4 bytes\): No such file or directory$"):
        write_atomic(path, b"data")
    write_atomic(path, b"data", make_parent=True)
    assert path.read_bytes() == b"data"


def test_a_folder_that_needs_more_than_the_disk_has_is_refused_at_once(tmp_path: Path):
    with (
        pytest.raises(WriteError, match=r"No space left on device; \d+\.\d MB are free there"),
        atomic_folder(tmp_path / "out", 1 << 60),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
