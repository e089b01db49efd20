"""An import that is killed or interrupted, or runs beside another, ends as one that was left alone."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import little_datasets as little
import pytest
from content import environment
from prefloop.store import PairStore
from prefloop.store.check import check
from prefloop.store.importers.config import ImportConfig
from prefloop.store.importers.formats import open_source
from prefloop.store.importers.run import import_pairs
from test_kill import content, n_parts

# The command line with parts of 20 pairs and pictures that take their time.
_SLOW = """
import sys, time
from prefloop.store.importers import part
part.PAIRS = 20
keep = part._keep
def slowly(*arguments):
    time.sleep(0.01)
    return keep(*arguments)
part._keep = slowly
from prefloop.cli import main
main()
"""


def started(*words: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _SLOW, *map(str, words)],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def calm(source: Path, path: Path) -> PairStore:
    store = PairStore.create(path)
    config = ImportConfig(source=str(source))
    import_pairs(config, open_source(config), store)
    return store


def wait_for_parts(store: Path, n: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if (store / "journal").is_dir() and n_parts(store) >= n:
            return
        time.sleep(0.002)


@pytest.mark.slow  # six kills, each of a process that is started for it
def test_an_import_survives_a_storm_of_kills(tmp_path: Path):
    chance = random.Random(3)
    source = little.pickapic(tmp_path / "train.parquet", n=120)
    expected = calm(source, tmp_path / "calm")
    store, kills = tmp_path / "store", 0
    words = ["store", "import", source, "--store", store]
    # 6 parts of 20 pairs; each is some 5 journal parts
    for more in (0, 1, 3, 4, 6, 7):
        before = n_parts(store) if store.exists() else 0
        process = started(*words, cwd=tmp_path)
        wait_for_parts(store, before + more, process)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills == 6
    ended = started(*words, cwd=tmp_path)
    printed, said = ended.communicate(timeout=120)
    assert ended.returncode == 0, said
    assert printed.startswith("120 pairs of pickapic")
    opened = PairStore.open(store)
    assert content(opened) == content(expected)
    assert check(opened) == []
    again = started(*words, cwd=tmp_path)
    assert again.communicate(timeout=120)[0].startswith("nothing to do: 120 pairs of pickapic, 0 of them new")


def test_a_signal_ends_an_import_after_its_part(tmp_path: Path):
    source = little.pickapic(tmp_path / "train.parquet", n=120)
    store = tmp_path / "store"
    words = ["store", "import", source, "--store", store]
    process = started(*words, cwd=tmp_path)
    wait_for_parts(store, 3, process)
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "Traceback" not in said
    assert "the same command goes on from here" in said.strip().splitlines()[-1]
    opened = PairStore.open(store)
    ((n,),) = opened.rows("select count(*) from pairs")
    assert 0 < n < 120
    assert opened.rows("select status from runs") == [("interrupted",)]
    assert check(opened) == []
    assert started(*words, cwd=tmp_path).wait(120) == 0
    assert content(PairStore.open(store)) == content(calm(source, tmp_path / "calm"))


def test_a_second_import_of_the_same_source_leaves_at_once_and_one_of_another_goes_on(tmp_path: Path):
    source = little.pickapic(tmp_path / "train.parquet", n=120)
    rows = [row | {"caption": f"other {row['caption']}"} for row in little.pickapic_rows(40)]
    other = little.pickapic(tmp_path / "other.parquet", rows=rows)
    store = tmp_path / "store"
    first = started("store", "import", source, "--store", store, cwd=tmp_path)
    wait_for_parts(store, 1, first)
    second = started("store", "import", source, "--store", store, cwd=tmp_path)
    third = started("store", "import", other, "--store", store, cwd=tmp_path)
    _, said = second.communicate(timeout=60)
    assert second.returncode == 4
    assert f"in use by process {first.pid}" in said
    assert (first.wait(120), third.wait(120)) == (0, 0)
    opened = PairStore.open(store)
    assert opened.rows("select count(*) from pairs") == [(160,)]
    assert check(opened) == []
