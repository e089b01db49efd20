"""One loop that nothing disturbed, for all tests of loops."""

import shutil
from pathlib import Path

import content
import pytest
from little_loop import FILE, WORDS


def new_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "loop.toml").write_text(FILE)
    return path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two rounds were run; no test may change it."""
    folder = new_folder(tmp_path_factory.mktemp("loops") / "undisturbed")
    code, printed = content.finished(*WORDS, cwd=folder)
    assert code == 0, printed
    (folder / "printed").write_text(printed)
    return folder


@pytest.fixture
def copied(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(undisturbed, tmp_path / "copy"))


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A folder that holds the loop's settings alone."""
    return new_folder(tmp_path / "empty")
