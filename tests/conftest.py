"""Shared by tests: one thread, no network, an empty store, and a tiny pipeline made from a config."""

import gc
import os
import zipfile

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # read when torch is imported, by this process and those it starts
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Callable  # noqa: E402
from dataclasses import replace  # noqa: E402
from functools import cache  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

import content  # noqa: E402
import pytest  # noqa: E402
import typer.testing  # noqa: E402
from prefloop.store import PairStore, prompt_id  # noqa: E402
from prefloop.store.pairstore import new_pair  # noqa: E402

if TYPE_CHECKING:
    from uuid import UUID

    from prefloop.train import TrainConfig
    from prefloop.train.trainer import Trainer

# A call builds every command from its signature, as a process does once; the tests have a thousand calls. The name is private.
if hasattr(typer.testing, "_get_command"):
    typer.testing._get_command = cache(typer.testing._get_command)  # type: ignore[attr-defined]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse tests that are left out of `make test` without saying why."""
    for item in items:
        for mark in item.iter_markers("slow"):
            if not mark.kwargs.get("reason"):
                raise pytest.UsageError(f'{item.nodeid} is marked slow without a reason="…"')


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Take what collection has loaded out of garbage collection, which would visit all of torch again and again.

    It is also rarer: models and plots make many objects that live on, and visiting them took a tenth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session")
def _empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PairStore.create(tmp_path_factory.mktemp("empty") / "store").path


@pytest.fixture
def store(tmp_path: Path, _empty: Path) -> PairStore:
    """A store without rows; copied, because creating one takes 17 times as long."""
    return PairStore(content.copied(_empty, tmp_path / "store"))


@pytest.fixture
def first_version(tmp_path: Path) -> PairStore:
    """A store of schema version 1, which prefloop 0.1 made."""
    return kept_store(1, tmp_path)


def kept_store(version: int, folder: Path) -> PairStore:
    """A store that the prefloop of a schema version made."""
    with zipfile.ZipFile(Path(__file__).parent / "stores" / f"v{version}.zip") as archive:
        archive.extractall(folder / f"v{version}")
    return PairStore(folder / f"v{version}")


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a StableDiffusionPipeline with random weights; it generates 32 x 32 images from 4 x 4 latents."""
    import tiny

    return tiny.saved("sd15", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def _lora(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import results

    return results.lora_on(tiny_pipeline, tmp_path_factory.mktemp("results") / "tuned")


@pytest.fixture
def lora(_lora: Path, tmp_path: Path) -> Path:
    """A LoRA on the tiny pipeline, as train writes it."""
    return content.copied(_lora, tmp_path / "tuned")


@pytest.fixture(scope="session")
def _labelled(tmp_path_factory: pytest.TempPathFactory, _empty: Path) -> Path:
    store = PairStore(content.copied(_empty, tmp_path_factory.mktemp("labelled") / "store"))
    content.add_labeler(store, "redder")
    prompts = [f"prompt {number}" for number in range(40)]
    store.add_prompts((prompt, {}) for prompt in prompts)
    images = [[halves(store, (value, number, 40)) for value in (20, 220)] for number in range(40)]
    store.append("images", [row for both in images for row in both])
    pairs, labels = [], []
    for number, (prompt, (dull, red)) in enumerate(zip(prompts, images, strict=True)):
        pair = new_pair(prompt_id(prompt), dull["image_id"], red["image_id"], "generate")
        assert pair is not None
        choice = "tie" if number % 4 == 0 else ("a" if pair["image_a"] == red["image_id"] else "b")
        label = {"choice": choice, "p_a": 0.9 if choice == "a" else 0.1, "margin": 1.0}
        pairs.append(pair)
        labels.append({"pair_id": pair["pair_id"], "labeler": "redder", "revision": 0} | label)
    store.append("pairs", pairs)
    store.append("labels", labels)
    store.ingest()
    return store.path


@pytest.fixture
def labelled(tmp_path: Path, _labelled: Path) -> PairStore:
    """40 prompts with one pair each, labelled by 'redder': the redder image is chosen; every fourth is a tie."""
    return PairStore(content.copied(_labelled, tmp_path / "store"))


@pytest.fixture
def config(tiny_pipeline: Path, tmp_path: Path) -> "TrainConfig":
    return train_config(tiny_pipeline, tmp_path)


def train_config(model: Path, folder: Path) -> "TrainConfig":
    from prefloop.train import TrainConfig

    return TrainConfig(
        output_dir=str(folder / "tuned"),
        labelers=("redder",),
        model=str(model),
        max_train_steps=3,
        train_batch_size=2,
        lora_rank=0,
        learning_rate=1e-3,
        lr_warmup_steps=0,
        cpu=True,
    )


@pytest.fixture
def trainer(labelled: PairStore, config: "TrainConfig") -> "Callable[..., Trainer]":
    """Makes a trainer before its first step, with some settings changed."""
    from prefloop.core.signals import StopSignal
    from prefloop.train.trainer import Trainer

    def make(**changes: object) -> Trainer:
        changed = replace(config, **changes)  # type: ignore[arg-type]  # names are checked by the dataclass
        Path(changed.output_dir).mkdir(parents=True, exist_ok=True)
        return Trainer(changed, labelled, StopSignal())

    return make


def add_halves(store: PairStore, color: tuple[int, int, int]) -> "UUID":
    """Add an image whose left quarter is white, so that it differs from its mirror image."""
    row = halves(store, color)
    store.append("images", [row])
    return row["image_id"]


def halves(store: PairStore, color: tuple[int, int, int]) -> dict[str, Any]:
    """Write such an image; its row, which is not appended yet."""
    from PIL import Image
    from prefloop.store.images import png_bytes

    image = Image.new("RGB", (32, 32), color)
    image.paste((255, 255, 255), (0, 0, 8, 32))
    return store.write_image(png_bytes(image), 32, 32)


def loop_folder(path: Path) -> Path:
    """A new folder with the settings of a little loop."""
    from little_loop import FILE

    path.mkdir(parents=True)
    (path / "loop.toml").write_text(FILE)
    return path


@pytest.fixture(scope="session")
def undisturbed_loop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a little loop of two rounds was run; no test may change it."""
    from little_loop import WORDS

    folder = loop_folder(tmp_path_factory.mktemp("loops") / "undisturbed")
    code, printed = content.finished(*WORDS, cwd=folder)
    assert code == 0, printed
    (folder / "printed").write_text(printed)
    return folder


@pytest.fixture
def copied_loop(undisturbed_loop: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return content.copied(undisturbed_loop, tmp_path / "copy")


@pytest.fixture
def empty_loop(tmp_path: Path) -> Path:
    """A folder that holds the loop's settings alone."""
    return loop_folder(tmp_path / "empty")
