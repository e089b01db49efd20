"""`scorers ls`, `scorers check` and `doctor` say the same of the same scorers."""

import json
import socket
from dataclasses import asdict
from pathlib import Path

import little_hub
import pytest
from prefloop.cli import app
from prefloop.doctor.facts import scorers as doctor_scorers
from prefloop.relabel.scorers.availability import availability, installed
from prefloop.relabel.scorers.checkpoints import built_in
from prefloop.relabel.scorers.listing import as_table
from typer.testing import CliRunner

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_the_list_fits_80_columns_and_has_a_row_for_each_scorer():
    ended = RUNNER.invoke(app, ["scorers", "ls"])
    assert ended.exit_code == 0, ended.output
    lines = ended.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: line for line in lines[: 1 + len(installed())]}
    assert rows["scorer"].split() == ["scorer", "weights", "download", "license", "prompt", "GPU", "for"]
    assert rows["hps"].split()[1:] == ["missing", "1.84", "GiB", "Apache-2.0", "read", "advised", "labels,", "eval"]
    assert rows["oracle"].split()[1:] == ["built-in", "–", "–", "read", "no", "eval"]
    # hpsv2.1 is another name of hps
    fetched = next(line for line in lines if line.startswith("download with: "))
    assert fetched.startswith("download with: prefloop scorers fetch aesthetics clip hps hpsv2 hpsv3")


def test_doctor_and_check_agree_with_the_list():
    listed = {row["name"]: row for row in json.loads(RUNNER.invoke(app, ["scorers", "ls", "--json"]).stdout)}
    facts = {fact.name: fact for fact in doctor_scorers()}
    assert {name: fact.ok for name, fact in facts.items()} == {name: row["runs"] for name, row in listed.items()}
    assert {name: json.loads(json.dumps(fact.values)) for name, fact in facts.items()} == listed
    checked = RUNNER.invoke(app, ["scorers", "check"])
    assert checked.exit_code == 0, checked.output
    left_out = {line.split()[0] for line in checked.stdout.splitlines() if "left out: lacks " in line}
    assert left_out == {name for name, row in listed.items() if not row["runs"]}
    assert "oracle        pass" in checked.stdout


def test_a_checkpoint_is_looked_up(tmp_path: Path):
    assert availability("clip", "shapes").weights == "built-in"
    assert availability("hpsv2", "shapes").missing == ("built-in weights",)
    given = availability("clip", str(built_in("clip")))
    assert (given.weights, given.runs) == ("given", True)
    on_hub = availability("clip", "owner/name")
    assert (on_hub.weights, on_hub.runs, on_hub.cure) == ("missing", False, "`hf download owner/name`")
    nowhere = availability("clip", str(tmp_path / "none"))
    assert not nowhere.runs
    assert "no checkpoint at" in str(nowhere.cure)
    assert availability("oracle", "shapes") == availability("oracle")


def test_an_endpoint_is_asked_only_if_it_is_named():
    assert availability("vlm").reachable is None
    with little_hub.serving() as server:
        answering = availability("vlm", f"{server.address}/v1#model")  # it answers 404
        assert len(server.requests) == 1
    assert (answering.runs, answering.reachable) == (True, True)
    assert "answers" in as_table([answering])
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    silent = availability("vlm", f"http://127.0.0.1:{port}/v1#model")
    assert (silent.runs, silent.reachable) == (False, False)
    assert f"http://127.0.0.1:{port}/v1 does not answer" in str(silent.cure)
    assert "no answer" in as_table([silent])


def test_a_scorer_that_cannot_be_imported_is_listed_with_the_reason():
    broken = availability("no_such_module:Scorer")
    assert (broken.weights, broken.runs) == ("broken", False)
    assert "no_such_module" in as_table([broken])
    assert asdict(broken)["missing"] == ()
