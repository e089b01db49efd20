"""Errors say why a file cannot be written, and what is free only if space is the reason."""

import errno
import os
from pathlib import Path

import pytest
from prefloop.core.errors import cannot_write


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_reported_with_the_space_that_is_left(tmp_path: Path, number: int):
    reason = os.strerror(number)
    # the system's own error, and a library's that only quotes its text
    for error in (OSError(number, reason), RuntimeError(f"I/O error: {reason} (writing)")):
        message = str(cannot_write(tmp_path / "none" / "file", error, 12))
        assert message.startswith(f"cannot write {tmp_path}/none/file (12 bytes): {reason}; ")
        assert message.endswith(" MB are free there")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO, errno.ENOENT, errno.EFBIG])
def test_free_space_is_not_mentioned_if_something_else_is_wrong(tmp_path: Path, number: int):
    error = OSError(number, os.strerror(number))
    assert str(cannot_write(tmp_path / "file", error)) == f"cannot write {tmp_path}/file: {os.strerror(number)}"
