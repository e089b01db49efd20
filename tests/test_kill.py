"""kill -9 at any time: the same command again finishes, and the store is that of an undisturbed run."""

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

# Tables by what they hold; which run wrote a row is another in each store.
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


def content(store: PairStore) -> dict[str, list[tuple]]:
    return {table: store.rows(f"{columns} from {table} order by all") for table, columns in CONTENT.items()}


def killed(arguments: list[object], store: Path, after_parts: int, jitter: float) -> bool:
    """Start a command, kill it `jitter` seconds after the journal has so many new parts; whether it was still at work."""
    start = n_parts(store)
    process = started(*arguments, cwd=store.parent, SLOW_SCORER_LOG=str(store.parent / "log"))
    deadline = time.monotonic() + 90
    while process.exitcode is None and n_parts(store) - start < after_parts and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(jitter)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def n_parts(store: Path) -> int:
    return len(list((store / "journal").glob("*.parquet")))


def test_relabel_survives_a_storm_of_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chance = random.Random(0)
    stores = [PairStore.create(tmp_path / name / "store") for name in ("calm", "storm")]
    for store in stores:
        fill(store, n_prompts=4, images_per_prompt=5)
    calm, storm = stores
    monkeypatch.setenv("SLOW_SCORER_LOG", str(tmp_path / "calm" / "log"))
    relabel(RelabelConfig(scorers=("little_scorers:Slow",), batch_size=2), calm)
    words = ["relabel", "--scorer", "little_scorers:Slow", "--batch-size", 2, "--store", storm.path]
    # a run writes the labeler, its row, the scorer, then 10 parts of 2 scores, labels, and its row again
    kills = sum(killed(words, storm.path, after, chance.uniform(0, 0.06)) for after in (0, 2, 4, 3, 4))
    assert kills >= 3
    code, printed = finished(*words, cwd=tmp_path, SLOW_SCORER_LOG=str(tmp_path / "storm" / "log"))
    assert code == 0, printed
    assert content(PairStore.open(storm.path)) == content(calm)
    assert check(storm) == []
    scored = (tmp_path / "storm" / "log").read_text().count("scored")
    # 20 pictures once; each kill costs at most the batch of 2 that was at work
    assert 20 <= scored <= 20 + 2 * kills


def test_generate_survives_a_storm_of_kills(tiny_pipeline: Path, tmp_path: Path):
    chance = random.Random(1)
    (tmp_path / "prompts.txt").write_text("\n".join(f"a red circle {number}" for number in range(6)))
    settings: dict[str, Any] = {"model": str(tiny_pipeline), "prompts": str(tmp_path / "prompts.txt")}
    settings |= {"images_per_prompt": 3}
    settings |= {"num_inference_steps": 2, "batch_size": 2, "device": "cpu"}
    words: list[object] = ["generate"]
    for name, value in settings.items():
        words += ["--" + name.replace("_", "-"), value]
    calm, storm = PairStore.create(tmp_path / "calm"), tmp_path / "storm" / "store"
    generate(GenerateConfig(**settings), calm)
    storm.parent.mkdir()
    # a fresh store: the run's row, prompts, the model, then 9 times images and generations, pairs, the run's row
    kills = sum(killed([*words, "--store", storm], storm, after, chance.uniform(0, 0.03)) for after in (1, 6, 8))
    assert kills >= 2
    code, printed = finished(*words, "--store", storm, cwd=tmp_path)
    assert code == 0, printed
    store = PairStore.open(storm)
    assert content(store) == content(calm)
    assert store.rows("select count(*), count(distinct image_id) from generations") == [(18, 18)]
    assert check(store) == []


def test_a_store_killed_in_its_making_is_made_by_the_same_command(tmp_path: Path):
    script = (
        "import sys\nfrom prefloop.store import PairStore\nprint('go', flush=True)\nPairStore.create(sys.argv[1])\n"
    )
    chance = random.Random(2)
    for attempt in range(3):
        path = tmp_path / str(attempt)
        process = subprocess.Popen(
            [*command()[:1], "-c", script, str(path)], stdout=subprocess.PIPE, env=environment(), cwd=tmp_path
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0, 0.12))
        process.kill()
        process.communicate()
        store = PairStore.create(path)
        fill(store, n_prompts=1)
        assert check(PairStore.open(path)) == []
