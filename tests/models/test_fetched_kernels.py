"""No library that we load may fetch compiled code from the hub."""

import subprocess
import sys
from pathlib import Path

import content
import pytest


def run(code: str, folder: Path) -> str:
    """What a process prints in which the package `kernels` seems to be installed; it says so when it is imported."""
    (folder / "kernels.py").write_text("print('imported')")
    environment = content.environment()
    environment["PYTHONPATH"] = f"{folder}:{environment['PYTHONPATH']}"
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ).stdout


def test_the_package_that_fetches_kernels_seems_absent(tmp_path: Path):
    assert (
        run("import importlib.util, prefloop.models; print(importlib.util.find_spec('kernels'))", tmp_path) == "None\n"
    )
    assert run("import kernels, prefloop.models, kernels", tmp_path) == "imported\n"  # a program that has it keeps it


@pytest.mark.slow(reason="a process loads peft")
def test_bitsandbytes_does_not_get_to_it_nor_advises_to_install_it(tmp_path: Path):
    assert run("import prefloop.models, peft.tuners.lora; import bitsandbytes.backends.cpu.ops", tmp_path) == ""
