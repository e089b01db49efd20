"""The wheel holds what the package needs and nothing that only the repository needs."""

import os
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = (
    "py.typed",
    "core/*.js",
    "store/*.sql",
    "store/queries/*.sql",
    "eval/*.html",
    "eval/benchmarks/*.toml",
    "relabel/validation/*.html",
    "relabel/annotate/templates/*",
    "relabel/annotate/static/*",
    "relabel/scorers/*.LICENSE",
    "train/recipes/*.toml",
    "loop/*.html",
    "loop/recipes/*.toml",
    "shapes/prompts/*.jsonl",
    "relabel/validation/examples/*.png",
    "shapes/weights/**/*",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    # from a copy: a build leaves its folders beside the sources
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "dist")
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "source"],
        check=True,
        capture_output=True,
        env=os.environ | {"PIP_NO_INDEX": "1"},
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.slow(reason="builds the wheel")
def test_the_wheel_holds_every_module_of_every_package(wheel: zipfile.ZipFile):
    names = set(wheel.namelist())
    folders = [ROOT, *(path.parent for path in (*ROOT.glob("*/__init__.py"), *ROOT.glob("*/*/__init__.py")))]
    modules = [path for folder in folders for path in folder.glob("*.py")]
    assert len(modules) > 40
    missing = [path for path in modules if f"prefloop/{path.relative_to(ROOT).as_posix()}" not in names]
    assert not missing


@pytest.mark.parametrize("pattern", DATA)
def test_the_wheel_holds_the_data(wheel: zipfile.ZipFile, pattern: str):
    files = [path for path in ROOT.glob(pattern) if path.is_file()]
    assert files
    for path in files:
        assert wheel.read(f"prefloop/{path.relative_to(ROOT).as_posix()}") == path.read_bytes()


def test_the_wheel_has_the_command_and_the_scorers(wheel: zipfile.ZipFile):
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    points = ConfigParser()
    points.read_string(wheel.read(name).decode())
    assert dict(points["console_scripts"]) == {"prefloop": "prefloop.cli:main"}
    assert set(points["prefloop.scorers"]) == {
        "aesthetics",
        "clip",
        "hps",
        "hpsv2",
        "hpsv2.1",
        "hpsv3",
        "imagereward",
        "oracle",
        "pickscore",
        "vlm",
    }


def test_the_wheel_holds_nothing_of_the_repository_alone(wheel: zipfile.ZipFile):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"prefloop"}
    second = {name.split("/")[1] for name in wheel.namelist() if name.startswith("prefloop/")}
    assert not second & {"tests", "bench", "docs", "Makefile", "build"}
