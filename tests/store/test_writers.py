"""Several processes on one store: nothing is lost, nobody waits long, and work is not done twice."""

import json
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import content
import pytest
from prefloop.cli import app
from prefloop.store import PairStore
from prefloop.store.check import check
from typer.testing import CliRunner

LONGEST = 10.0  # seconds a writer or reader may take for one turn, on a machine that does other things too


def label(path: Path, pairs: list[UUID], out: Path) -> None:
    """A person's page: each answer is in the journal before the next one, and in the tables; out: the longest turn."""
    store = PairStore.open(path)
    turns = []
    for number, pair in enumerate(pairs):
        start = time.monotonic()
        content.add_label(store, pair, "human:me", "ab"[number % 2])
        store.ingest()
        assert store.rows("select count(*) from labels where labeler = 'human:me'") == [(number + 1,)]
        turns.append(time.monotonic() - start)
        time.sleep(0.1)
    out.write_text(json.dumps(max(turns)))


def read(path: Path, others: list[Path], out: Path) -> None:
    """`store query` again and again until the others have ended; out: the longest turn, and what was counted each time."""
    turns, counts = [], []
    sql = "select (select count(*) from scores) + (select count(*) from labels) + (select count(*) from images) as n"
    done = False
    while not done:
        done = all(other.exists() for other in others)
        start = time.monotonic()
        ended = CliRunner().invoke(app, ["store", "query", sql, "--format", "json", "--store", str(path)])
        assert ended.exit_code == 0, ended.output
        turns.append(time.monotonic() - start)
        counts.append(json.loads(ended.stdout)[0]["n"])
        time.sleep(0.3)
    out.write_text(json.dumps([max(turns), counts]))


@pytest.mark.slow(reason="starts processes")
def test_four_processes_at_once_lose_nothing(store: PairStore, tiny_pipeline: Path, tmp_path: Path):
    pairs = content.fill(store, n_prompts=4, images_per_prompt=5)
    content.add_labeler(store, "human:me")
    store.ingest()
    (tmp_path / "prompts.txt").write_text("\n".join(f"a red circle {number}" for number in range(6)))
    generate = ["generate", "--model", tiny_pipeline, "--prompts", tmp_path / "prompts.txt", "--store", store.path]
    generate += ["--images-per-prompt", 2, "--num-inference-steps", 2, "--batch-size", 2, "--device", "cpu"]
    relabel = ["relabel", "--scorer", "little_scorers:Slow", "--batch-size", 1, "--store", store.path]
    log: Any = {"SLOW_SCORER_LOG": str(tmp_path / "log")}
    said = {name: tmp_path / name for name in ("generate", "relabel", "label", "read")}
    ends = [tmp_path / "end-of-generate", tmp_path / "end-of-relabel"]
    processes = {
        "relabel": content.started(*relabel, cwd=tmp_path, out=said["relabel"], **log),
        "generate": content.started(*generate, cwd=tmp_path, out=said["generate"]),
        "label": content.forked(label, store.path, pairs, said["label"]),
        "read": content.forked(read, store.path, [*ends, said["label"]], said["read"]),
    }
    for name, end in zip(("generate", "relabel"), ends, strict=True):
        processes[name].join(90)
        end.touch()
    for name, process in processes.items():
        process.join(60)
        assert process.exitcode == 0, (name, said[name].read_text() if said[name].exists() else "")

    longest, counts = json.loads(said["read"].read_text())
    assert counts == sorted(counts)  # what was there once is there ever after
    assert len(set(counts)) > 3  # it read while the others wrote
    assert longest < LONGEST
    assert json.loads(said["label"].read_text()) < LONGEST
    assert check(store) == []
    assert store.rows("select count(*) from generations") == [(12,)]
    assert store.rows("select count(*) from pairs where source = 'generate'") == [(len(pairs) + 6,)]
    labels = store.rows("select pair_id, choice from labels where labeler = 'human:me'")
    assert dict(labels) == {pair: "ab"[number % 2] for number, pair in enumerate(pairs)}
    assert len(labels) == len(pairs)
    # whatever relabel had not seen yet is left for the next call; nothing is scored twice
    assert content.finished(*relabel, cwd=tmp_path, **log)[0] == 0
    assert store.rows("select count(*) from scores") == [(32,)]
    assert (tmp_path / "log").read_text().count("scored") == 32


@pytest.mark.slow(reason="starts processes")
@pytest.mark.parametrize("other", [[], ["--labeler", "another", "--batch-size", 2]])
def test_a_second_command_with_the_same_work_names_the_first(store: PairStore, tmp_path: Path, other: list):
    content.fill(store, n_prompts=4, images_per_prompt=5)
    words = ["relabel", "--scorer", "little_scorers:Slow", "--batch-size", 1, "--store", store.path]
    log: Any = {"SLOW_SCORER_LOG": str(tmp_path / "log")}
    first = content.started(*words, cwd=tmp_path, **log)
    while not (tmp_path / "log").exists() and first.exitcode is None:
        time.sleep(0.005)
    code, printed = content.finished(*words, *other, cwd=tmp_path, **log)
    assert first.exitcode is None
    assert code == 4, printed
    assert f"is in use by process {first.pid}" in printed
    first.join(60)
    assert first.exitcode == 0
    assert (tmp_path / "log").read_text().count("scored") == 20
