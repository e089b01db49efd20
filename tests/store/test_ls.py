"""`store ls` lists each run with its model, round, duration and what it added."""

import datetime
import json
from pathlib import Path
from uuid import UUID

import pytest
from content import add_generation, add_image, add_prompt
from example_store import example_store
from prefloop.cli import app
from prefloop.store import PairStore
from typer.testing import CliRunner

START = datetime.datetime(2026, 3, 2, 9, 0, 0, 250_000)


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example_store(tmp_path_factory.mktemp("ls") / "pairs").path


def ls(path: Path, *options: str) -> str:
    ended = CliRunner().invoke(app, ["store", "ls", "--store", str(path), *options])
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def add_run(store: PairStore, number: int, kind: str, status: str, seconds: float, config: dict, summary: dict) -> None:
    times = {"started": START, "updated": START + datetime.timedelta(seconds=seconds)}
    texts = {"config": json.dumps(config), "versions": "{}", "summary": json.dumps(summary)}
    row = {"run_id": UUID(int=number), "kind": kind, "status": status, **times, **texts, "parents": []}
    store.append("runs", [row])


def runs(path: Path) -> list[dict]:
    return json.loads(ls(path, "--json"))["runs"]


def test_runs_have_their_rounds_and_what_they_added(listed: Path):
    by_id = {UUID(run["run_id"]).int: run for run in runs(listed)}
    # 8 prompts with three images of the base each: two made in the first round, one of them by the run of the second; 8 of
    # the tuned model by the evaluation
    first, second, evaluation = by_id[301], by_id[401], by_id[302]
    assert (first["round"], first["images"], first["pairs"]) == (1, 16, 8)
    assert (second["round"], second["images"], second["pairs"]) == (2, 8, 8)
    assert (evaluation["round"], evaluation["images"], evaluation["pairs"]) == (1, 8, 8)
    # 16 pairs by pickscore, 8 by each of the two scorers of the evaluation, of which one scored 16 images
    scored = by_id[200]
    assert (scored["round"], scored["labels"], scored["scores"]) == (None, 32, 16)
    assert (scored["seconds"], scored["started"], scored["status"]) == (3600.0, "2026-03-02T09:00:00Z", "done")


def test_runs_have_their_models_and_their_labelers(store: PairStore):
    add_run(store, 1, "generate", "done", 100, {"model": "shapes"}, {})
    add_run(store, 2, "relabel", "done", 0.5, {}, {"labeler": "pickscore"})
    trained = {"steps": 40, "n_pairs": 12}
    add_run(store, 3, "train", "done", 7200, {"model": "shapes", "labelers": ["pickscore", "human:ann=2"]}, trained)
    add_run(store, 4, "eval", "failed", 1, {"models": ["tuned", "other"]}, {})
    add_run(store, 5, "eval", "running", 0, {"models": [], "sweep": "tuned"}, {})
    prompt, image = add_prompt(store, "one"), add_image(store, (1, 0, 0))
    add_generation(store, prompt, UUID(int=9), image, run_id=UUID(int=1))
    store.ingest()
    rows = runs(store.path)
    assert [run["model"] for run in rows] == ["shapes", None, "shapes", "tuned, other", "tuned"]
    assert [run["labeler"] for run in rows] == [None, "pickscore", "pickscore, human:ann=2", None, None]
    assert [run["seconds"] for run in rows] == [100.0, 0.5, 7200.0, 1.0, None]
    assert (rows[0]["images"], rows[2]["steps"], rows[2]["pairs"]) == (1, 40, 12)
    table = ls(store.path)
    for text in ("2 min", "0.5 s", "2 h", "running", "2026-03-02T09:00:00Z"):
        assert text in table, text
    # columns without a value are left out of the table
    assert "duration" in table
    assert not {"round", "error", "run_id", "scores"} & set(table.split("models\n")[0].split())


def test_labelers_of_evaluations_come_last(listed: Path):
    labelers = [row["labeler"] for row in json.loads(ls(listed, "--json"))["labelers"]]
    assert labelers == ["human:ann", "human:ben", "pickscore", "eval:clip@1", "eval:hps@2.1"]


def test_an_empty_store_is_listed(store: PairStore):
    assert "0 rows" in ls(store.path)
    assert json.loads(ls(store.path, "--json")) == {"runs": [], "models": [], "scorers": [], "labelers": []}
