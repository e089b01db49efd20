"""What would keep `generate` from writing is found before its model is loaded, and what another process generated is not again."""

import shutil
from dataclasses import replace
from pathlib import Path

import content
import pytest
from prefloop.cli import app
from prefloop.core.errors import BusyError
from prefloop.core.executor import InProcess
from prefloop.generate import GenerateConfig
from prefloop.generate.image_worker import ImageWorker
from prefloop.generate.stage import generate, plan, run_plan
from prefloop.store import PairStore
from typer.testing import CliRunner


@pytest.fixture
def config(tiny_pipeline: Path, tmp_path: Path) -> GenerateConfig:
    """Two images of one prompt."""
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    return GenerateConfig(
        model=str(tiny_pipeline),
        prompts=str(tmp_path / "prompts.txt"),
        images_per_prompt=2,
        num_inference_steps=1,
        device="cpu",
    )


@pytest.fixture
def words(config: GenerateConfig, tiny_pipeline: Path, tmp_path: Path) -> list[str]:
    """A command whose model is refused once its weights are read."""
    broken = shutil.copytree(tiny_pipeline, tmp_path / "broken")
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
    return ["generate", "--model", str(broken), "--prompts", str(config.prompts), "--device", "cpu"]


def never() -> ImageWorker:
    raise AssertionError("the model is loaded")


def test_a_folder_with_other_files_is_refused(words: list[str], tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    ended = CliRunner().invoke(app, [*words, "--store", str(tmp_path / "mine")])
    assert ended.stderr == f"prefloop: {tmp_path}/mine exists and is not a store; name another folder\n"
    assert ended.exit_code == 2


def test_a_store_below_a_file_is_refused(words: list[str], config: GenerateConfig):
    path = f"{config.prompts}/store"
    ended = CliRunner().invoke(app, [*words, "--store", path])
    assert ended.stderr == f"prefloop: cannot write {path}: Not a directory\n"
    assert ended.exit_code == 1


@pytest.mark.slow(reason="starts processes")
@pytest.mark.parametrize("name", ["store", "new"])
def test_a_store_on_read_only_media_is_refused(words: list[str], store: PairStore, tmp_path: Path, name: str):
    (store.path / "locks").mkdir()
    ended = content.finished_on_read_only_media(tmp_path, *words, "--store", tmp_path / name)
    written = store.journal if name == "store" else tmp_path / "new"
    assert ended.stderr == f"prefloop: cannot write {written}: Read-only file system\n"
    assert ended.returncode == 1


def test_what_another_process_has_generated_since_it_was_planned_is_not_generated(
    store: PairStore, config: GenerateConfig
):
    planned = plan(config, store)
    assert len(planned.missing) == 2
    generate(config, PairStore.open(store.path))
    summary = run_plan(planned, store, InProcess(never))
    assert (summary["images"], summary["generated"], summary["new_pairs"]) == (2, 0, 0)
    assert store.rows("select count(*) from generations") == [(2,)]


def test_another_seed_is_generated_at_the_same_time_and_the_same_model_by_another_name_is_not(
    store: PairStore, config: GenerateConfig, monkeypatch: pytest.MonkeyPatch
):
    planned = plan(config, store)
    folder = Path(config.model)
    monkeypatch.chdir(folder.parent)
    summaries = []

    def meanwhile() -> None:
        with pytest.raises(BusyError, match="this generate run"):
            generate(replace(config, model=folder.name), PairStore.open(store.path))
        summaries.append(generate(replace(config, seed=1), PairStore.open(store.path)))

    summaries.append(run_plan(planned, store, begin=meanwhile))
    assert [summary["generated"] for summary in summaries] == [2, 2]
    assert store.rows("select seed, count(*) from generations group by all order by all") == [(0, 2), (1, 2)]
