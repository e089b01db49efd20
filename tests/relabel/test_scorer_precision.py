"""On CUDA scorers run in half precision by default, under another revision; elsewhere in float32, under the one they have always had."""

import subprocess
import sys

import pytest
import torch
from content import environment
from prefloop.relabel.scorers import precision
from prefloop.relabel.scorers.precision import automatic_dtype
from prefloop.relabel.scorers.registry import dtype_of, load_scorer

SCORERS = ("pickscore", "hps", "clip", "aesthetics")
HOPPER, AMPERE, TURING, VOLTA = (9, 0), (8, 0), (7, 5), (7, 0)


def gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """Let torch report a GPU. Nothing runs on it: scorers load their weights at the first image."""
    monkeypatch.setattr(precision, "may_have_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)


@pytest.mark.parametrize(
    ("capability", "dtype"), [(HOPPER, "bfloat16"), (AMPERE, "bfloat16"), (TURING, "float16"), (VOLTA, "float16")]
)
def test_the_automatic_dtype_is_what_the_gpu_multiplies_in(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: str
):
    gpu(monkeypatch, capability)
    assert automatic_dtype(None) == dtype
    assert automatic_dtype("cpu") == automatic_dtype("mps") == "float32"


@pytest.mark.parametrize("name", SCORERS)
def test_a_gpu_changes_the_revision_and_float32_is_that_of_the_cpu(monkeypatch: pytest.MonkeyPatch, name: str):
    exact, half = (load_scorer(name, "shapes", "cpu", dtype).revision for dtype in ("float32", "bfloat16"))
    assert load_scorer(name, "shapes", "cpu").revision == exact
    gpu(monkeypatch, AMPERE)
    assert load_scorer(name, "shapes").revision == half
    assert load_scorer(name, "shapes", dtype="float32").revision == load_scorer(name, "shapes", "cpu").revision == exact


def test_workers_run_in_the_dtype_of_the_process_that_sent_them(monkeypatch: pytest.MonkeyPatch):
    gpu(monkeypatch, AMPERE)
    there, here = load_scorer("clip", "shapes"), load_scorer("clip", "shapes", "cpu")
    assert (dtype_of(there), dtype_of(here)) == ("bfloat16", "float32")
    assert load_scorer("clip", "shapes", dtype=dtype_of(here)).revision == here.revision != there.revision
    assert dtype_of(here, "float16") == "float16"
    colours = load_scorer("little_scorers:Redness")  # its constructor takes no dtype
    assert dtype_of(colours) == "auto"


def test_without_a_driver_the_dtype_is_known_without_importing_torch():
    script = (
        "import sys\nfrom prefloop.relabel.scorers import precision\nprecision.may_have_cuda = lambda: False\n"
        "print(precision.automatic_dtype(None), precision.automatic_dtype('cpu'), 'torch' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout.split() == ["float32", "float32", "False"]
