"""kill -9 at any time: the same command again finishes, and the store is that of an undisturbed run."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from content import command, environment, fill, prefloop

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
    process = subprocess.Popen(
        command(*arguments),
        cwd=store.parent,
        env=environment(SLOW_SCORER_LOG=str(store.parent / "log")),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 90
    while process.poll() is None and n_parts(store) - start < after_parts and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(jitter)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def n_parts(store: Path) -> int:
    return len(list((store / "journal").glob("*.parquet")))


def test_relabel_survives_a_storm_of_kills(tmp_path: Path):
    chance = random.Random(0)
    stores = [PairStore.create(tmp_path / name / "store") for name in ("calm", "storm")]
    for store in stores:
        fill(store, n_prompts=6, images_per_prompt=5)
    calm, storm = stores
    words = ["relabel", "--scorer", "little_scorers:Slow", "--batch-size", 2, "--store"]
    ended = prefloop(*words, calm.path, cwd=tmp_path, SLOW_SCORER_LOG=str(tmp_path / "calm" / "log"))
    assert ended.returncode == 0, ended.stderr
    # a run writes labeler, run, scorer, then 15 parts of 2 scores, labels and its end
    kills = sum(
        killed([*words, storm.path], storm.path, chance.choice((0, 1, 2, 4, 5, 6)), chance.uniform(0, 0.08))
        for _ in range(6)
    )
    assert kills >= 4
    ended = prefloop(*words, storm.path, cwd=tmp_path, SLOW_SCORER_LOG=str(tmp_path / "storm" / "log"))
    assert ended.returncode == 0, ended.stderr
    assert content(PairStore.open(storm.path)) == content(calm)
    assert check(storm) == []
    scored = (tmp_path / "storm" / "log").read_text().count("scored")
    # 30 pictures once; each kill costs at most the batch of 2 that was at work
    assert 30 <= scored <= 30 + 2 * kills
    assert (tmp_path / "calm" / "log").read_text().count("scored") == 30
    again = prefloop(*words, storm.path, cwd=tmp_path, SLOW_SCORER_LOG=str(tmp_path / "storm" / "log"))
    assert again.stdout.startswith("nothing to do")


@pytest.mark.slow  # each process loads torch and diffusers
def test_generate_survives_a_storm_of_kills(tiny_pipeline: Path, tmp_path: Path):
    chance = random.Random(1)
    (tmp_path / "prompts.txt").write_text("\n".join(f"a red circle {number}" for number in range(6)))
    words: list[object] = ["generate", "--model", tiny_pipeline, "--prompts", tmp_path / "prompts.txt"]
    words += ["--images-per-prompt", 3, "--num-inference-steps", 2, "--batch-size", 2, "--device", "cpu", "--store"]
    calm, storm = (tmp_path / name / "store" for name in ("calm", "storm"))
    for store in (calm, storm):
        store.parent.mkdir()
    ended = prefloop(*words, calm, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    # a fresh store: run, prompts, models, then 9 times images and generations, pairs, and the run's end
    kills = 0
    for after in (0, 1, 4, 9, chance.randrange(2, 8)):
        kills += killed([*words, storm], storm, after, chance.uniform(0, 0.05))
    assert kills >= 3
    ended = prefloop(*words, storm, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    store = PairStore.open(storm)
    assert content(store) == content(PairStore.open(calm))
    assert store.rows("select count(*), count(distinct image_id) from generations") == [(18, 18)]
    assert check(store) == []
    assert prefloop(*words, storm, cwd=tmp_path).stdout.startswith("nothing to do")


def test_a_store_killed_in_its_making_is_made_by_the_same_command(tmp_path: Path):
    script = "import sys\nfrom prefloop.store import PairStore\nprint('go', flush=True)\nPairStore.create(sys.argv[1])\n"
    chance = random.Random(2)
    for attempt in range(6):
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
