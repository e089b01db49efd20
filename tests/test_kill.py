"""kill -9 at any time: the same command run again finishes, and the store equals that of an undisturbed run."""

import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from content import command, environment, fill, finished, started
from prefloop.generate import GenerateConfig
from prefloop.generate.stage import generate
from prefloop.relabel import RelabelConfig
from prefloop.relabel.stage import relabel
from prefloop.store import PairStore
from prefloop.store.check import check

# What must be equal; run_id, the run that wrote a row, differs between stores.
CONTENT = {
    "prompts": "select *",
    "models": "select *",
    "images": "select *",
    "generations": "select * exclude (run_id)",
    "pairs": "select * exclude (run_id)",
    "scorers": "select *",
    "scores": "select * exclude (run_id)",
    "labelers": "select *",
    "labels": "select * exclude (run_id)",
}


def table_contents(store: PairStore) -> dict[str, list[tuple]]:
    return {table: store.rows(f"{columns} from {table} order by all") for table, columns in CONTENT.items()}


def killed(arguments: list[object], store: Path, after_parts: int, jitter: float) -> bool:
    """Kill a command `jitter` seconds after the journal has `after_parts` new parts; whether it was still running."""
    n_before = n_parts(store)
    process = started(*arguments, cwd=store.parent, SLOW_SCORER_LOG=str(store.parent / "log"))
    deadline = time.monotonic() + 90
    while process.exitcode is None and n_parts(store) - n_before < after_parts and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(jitter)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def n_parts(store: Path) -> int:
    return len(list((store / "journal").glob("*.parquet")))


@pytest.mark.slow(reason="kills processes and goes on from there")
def test_relabel_survives_repeated_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = random.Random(0)
    stores = [PairStore.create(tmp_path / name / "store") for name in ("undisturbed", "killed_store")]
    for store in stores:
        fill(store, n_prompts=4, images_per_prompt=5)
    undisturbed, killed_store = stores
    monkeypatch.setenv("SLOW_SCORER_LOG", str(tmp_path / "undisturbed" / "log"))
    relabel(RelabelConfig(scorers=("little_scorers:Slow",), batch_size=2), undisturbed)
    words = ["relabel", "--scorer", "little_scorers:Slow", "--batch-size", 2, "--store", killed_store.path]
    # a run writes parts: the labeler, its row, the scorer, then 10 times 2 scores, labels, and its row again
    kills = sum(killed(words, killed_store.path, after, rng.uniform(0, 0.06)) for after in (0, 2, 4, 3, 4))
    assert kills >= 3
    code, printed = finished(*words, cwd=tmp_path, SLOW_SCORER_LOG=str(tmp_path / "killed_store" / "log"))
    assert code == 0, printed
    assert table_contents(PairStore.open(killed_store.path)) == table_contents(undisturbed)
    assert check(killed_store) == []
    scored = (tmp_path / "killed_store" / "log").read_text().count("scored")
    # 20 images once; each kill costs at most the batch of 2 in progress
    assert 20 <= scored <= 20 + 2 * kills


@pytest.mark.slow(reason="kills processes and goes on from there")
def test_generate_survives_repeated_kills(tiny_pipeline: Path, tmp_path: Path):
    rng = random.Random(1)
    (tmp_path / "prompts.txt").write_text("\n".join(f"a red circle {number}" for number in range(6)))
    settings: dict[str, Any] = {"model": str(tiny_pipeline), "prompts": str(tmp_path / "prompts.txt")}
    settings |= {"images_per_prompt": 3}
    settings |= {"num_inference_steps": 2, "batch_size": 2, "device": "cpu"}
    words: list[object] = ["generate"]
    for name, value in settings.items():
        words += ["--" + name.replace("_", "-"), value]
    undisturbed, killed_store = PairStore.create(tmp_path / "undisturbed"), tmp_path / "killed_store" / "store"
    generate(GenerateConfig(**settings), undisturbed)
    killed_store.parent.mkdir()
    # parts in a new store: the run's row, prompts, the model, then 9 times images and generations, pairs, the run's row
    kills = sum(
        killed([*words, "--store", killed_store], killed_store, after, rng.uniform(0, 0.03)) for after in (1, 6, 8)
    )
    assert kills >= 2
    code, printed = finished(*words, "--store", killed_store, cwd=tmp_path)
    assert code == 0, printed
    store = PairStore.open(killed_store)
    assert table_contents(store) == table_contents(undisturbed)
    assert store.rows("select count(*), count(distinct image_id) from generations") == [(18, 18)]
    assert check(store) == []


@pytest.mark.slow(reason="kills processes and goes on from there")
def test_a_store_whose_creation_was_killed_is_created_by_the_same_command(tmp_path: Path):
    script = (
        "import sys\nfrom prefloop.store import PairStore\nprint('go', flush=True)\nPairStore.create(sys.argv[1])\n"
    )
    rng = random.Random(2)
    for attempt in range(3):
        path = tmp_path / str(attempt)
        process = subprocess.Popen(
            [*command()[:1], "-c", script, str(path)], stdout=subprocess.PIPE, env=environment(), cwd=tmp_path
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.12))
        process.kill()
        process.communicate()
        store = PairStore.create(path)
        fill(store, n_prompts=1)
        assert check(PairStore.open(path)) == []
