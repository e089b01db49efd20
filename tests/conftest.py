"""What several tests need: one thread, no network, an empty store, and a tiny pipeline made from config."""

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # read when torch is imported, by this process and those it starts
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from prefloop.store import PairStore  # noqa: E402


@pytest.fixture
def store(tmp_path: Path) -> PairStore:
    return PairStore.create(tmp_path / "store")


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline of random weights, as a folder; it draws 32 x 32 pictures from 4 x 4 latents."""
    import tiny

    return tiny.saved("sd15", tmp_path_factory.mktemp("models") / "tiny")
