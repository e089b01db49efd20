"""An import that is killed or interrupted, or runs beside another, ends like an undisturbed one."""

import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import little_datasets as little
import pytest
from content import started
from prefloop.store import PairStore
from prefloop.store.check import check
from prefloop.store.importers import part
from prefloop.store.importers.config import ImportConfig
from prefloop.store.importers.formats import open_source
from prefloop.store.importers.run import import_pairs
from test_kill import n_parts, table_contents


def _slowly() -> None:
    """Parts of 20 pairs, and slow writing of images."""
    store_image = part._store_image

    def slow(*arguments: Any) -> Any:
        time.sleep(0.01)
        return store_image(*arguments)

    part.PAIRS, part._store_image = 20, slow


def importing(source: Path, cwd: Path, out: str = "printed") -> BaseProcess:
    return started("store", "import", source, "--store", cwd / "store", cwd=cwd, out=cwd / out, first=_slowly)


def ended(process: BaseProcess) -> int:
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def undisturbed(source: Path, path: Path) -> PairStore:
    store = PairStore.create(path)
    config = ImportConfig(source=str(source))
    import_pairs(config, open_source(config), store)
    return store


def wait_for_parts(store: Path, n: int, process: BaseProcess) -> None:
    deadline = time.monotonic() + 60
    while process.exitcode is None and time.monotonic() < deadline:
        if (store / "journal").is_dir() and n_parts(store) >= n:
            return
        time.sleep(0.002)


@pytest.mark.slow(reason="starts and kills six processes")
def test_an_import_survives_a_storm_of_kills(tmp_path: Path):
    chance = random.Random(3)
    source = little.pickapic(tmp_path / "train.parquet", n=120)
    expected = undisturbed(source, tmp_path / "undisturbed")
    store, kills = tmp_path / "store", 0
    # 6 parts of 20 pairs; each is some 5 journal parts
    for more in (0, 1, 3, 4, 6, 7):
        before = n_parts(store) if store.exists() else 0
        process = importing(source, tmp_path)
        wait_for_parts(store, before + more, process)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        kills += ended(process) == -signal.SIGKILL
    assert kills == 6
    printed = tmp_path / "printed"
    assert ended(importing(source, tmp_path)) == 0, printed.read_text()
    assert "120 pairs from pickapic" in printed.read_text()
    opened = PairStore.open(store)
    assert table_contents(opened) == table_contents(expected)
    assert check(opened) == []
    assert ended(importing(source, tmp_path)) == 0
    assert "nothing to do: 120 pairs from pickapic, 0 of them new" in printed.read_text()


@pytest.mark.slow(reason="writes and reads whole stores")
def test_a_signal_ends_an_import_after_its_part(tmp_path: Path):
    source = little.pickapic(tmp_path / "train.parquet", n=120)
    store = tmp_path / "store"
    process = importing(source, tmp_path)
    wait_for_parts(store, 3, process)
    process.terminate()
    assert ended(process) == 143
    printed = (tmp_path / "printed").read_text()
    assert "Traceback" not in printed
    assert "the same command continues from here" in printed.strip().splitlines()[-1]
    opened = PairStore.open(store)
    ((n,),) = opened.rows("select count(*) from pairs")
    assert 0 < n < 120
    assert opened.rows("select status from runs") == [("interrupted",)]
    assert check(opened) == []
    assert ended(importing(source, tmp_path)) == 0
    assert table_contents(PairStore.open(store)) == table_contents(undisturbed(source, tmp_path / "undisturbed"))


@pytest.mark.slow(reason="writes and reads whole stores")
def test_a_second_import_of_the_same_source_ends_at_once_and_one_of_another_source_runs(tmp_path: Path):
    source = little.pickapic(tmp_path / "train.parquet", n=120)
    rows = [row | {"caption": f"other {row['caption']}"} for row in little.pickapic_rows(40)]
    other = little.pickapic(tmp_path / "other.parquet", rows=rows)
    store = tmp_path / "store"
    first = importing(source, tmp_path, "first")
    wait_for_parts(store, 1, first)
    second = importing(source, tmp_path, "second")
    third = importing(other, tmp_path, "third")
    assert ended(second) == 4
    assert f"in use by process {first.pid}" in (tmp_path / "second").read_text()
    assert (ended(first), ended(third)) == (0, 0)
    opened = PairStore.open(store)
    assert opened.rows("select count(*) from pairs") == [(160,)]
    assert check(opened) == []
