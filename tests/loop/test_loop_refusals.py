"""Whatever a user can do to a loop ends in one line that names the thing and the cure, and loses nothing."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import content
import pytest
from little_loop import FILE, store_content, store_of
from prefloop.cli import app
from prefloop.core.errors import BusyError, IntegrityError, PrefloopError, UsageError, WriteError
from prefloop.generate.stage import generate
from prefloop.loop.checks import (
    NothingToTrainOnError,
    refuse_impossible_loop,
    refuse_nothing_to_train_on,
    refuse_other_loop,
)
from prefloop.loop.cli import summary_text
from prefloop.loop.config import LoopSettings
from prefloop.loop.record import RoundResult, read_round, write_round
from prefloop.loop.settings_file import read_loop
from prefloop.loop.stage import finished_rounds, run_loop
from prefloop.store import PairStore
from typer.testing import CliRunner

RUNNER = CliRunner()


@pytest.fixture
def here(empty_loop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which holds loop.toml alone."""
    monkeypatch.chdir(empty_loop)
    return empty_loop


@pytest.fixture
def finished(copied_loop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which holds two finished rounds."""
    monkeypatch.chdir(copied_loop)
    return copied_loop


def little(*assignments: str, **loop: Any) -> LoopSettings:
    return read_loop("loop.toml", {"output_dir": "loop"} | loop, assignments)


def silent(_: str) -> None:
    """Nobody is told."""


def invoke(*words: str) -> tuple[int, list[str]]:
    """Exit code and error lines of the command line."""
    ended = RUNNER.invoke(app, ["loop", *words])
    assert isinstance(ended.exception, SystemExit | None), ended.exception
    return ended.exit_code, ended.stderr.splitlines()


@pytest.mark.parametrize(
    ("assignments", "code", "message"),
    [
        (["relabel.scorers=nope"], 2, "unknown scorer 'nope'"),
        (["eval.scorers=nope"], 2, "unknown scorer 'nope'"),
        (["relabel.scorers=oracle"], 2, "name another scorer in [relabel], and this one in [eval]"),
        (['eval.checkpoints={hps="shapes"}'], 2, "--checkpoint names 'hps', which is not one of the scorers"),
        (["generate.prompts=nope.txt"], 2, "prompt file nope.txt not found"),
        (["eval.prompts=nope.txt"], 2, "prompt file nope.txt not found"),
        (["loop.model=nope"], 1, "cannot find the model 'nope'"),
        (["generate.images_per_prompt=1"], 2, "a pair needs two images"),
        (["train.kohya=maybe"], 2, "not true or false"),
        (["train.mixed_precision=fp16"], 2, "fp16 needs a GPU"),
        (["train.min_snr_gamma=5", "loop.model=shapes-flow"], 2, "min-snr-gamma is for diffusion models"),
    ],
)  # fmt: skip
def test_what_a_later_stage_would_refuse_is_refused_before_anything_is_written(
    here: Path, assignments: Sequence[str], code: int, message: str
):
    code_found, lines = invoke(
        "loop.toml", "--output-dir", "loop", *(word for each in assignments for word in ("--set", each))
    )
    assert (code_found, len(lines)) == (code, 1), lines
    assert message in lines[0]
    assert [path.name for path in here.iterdir()] == ["loop.toml"]
    assert invoke("loop.toml", "--dry-run", *(word for each in assignments for word in ("--set", each))) == (
        code,
        lines,
    )


def test_init_writes_a_recipe_once_and_never_over_a_file(here: Path):
    assert invoke("shapes", "--init", "mine.toml") == (0, [])
    assert read_loop("mine.toml") == read_loop("shapes")
    (here / "mine.toml").write_text("mine")
    code, (line,) = invoke("shapes", "--init", "mine.toml")
    assert code == 2
    assert "mine.toml exists" in line
    code, (line,) = invoke("shapes", "--init", "other.toml", "--rounds", "5")
    assert code == 2
    assert "--init writes a recipe as it is" in line
    code, (line,) = invoke("shapes", "--init", "nowhere/mine.toml")
    assert code == 1
    assert "cannot write nowhere/mine.toml" in line
    assert sorted(path.name for path in here.iterdir()) == ["loop.toml", "mine.toml"]
    assert (here / "mine.toml").read_text() == "mine"


def test_a_store_is_not_a_loops_folder_and_another_folder_is_not_its_store(here: Path):
    PairStore.create("store")
    code, (line,) = invoke("loop.toml", "--output-dir", "store")
    assert code == 2
    assert "store is not empty and holds no loop" in line
    (here / "thesis").mkdir()
    (here / "thesis" / "thesis.txt").write_text("mine")
    for path, message in (("thesis", "exists and is not a store"), ("loop.toml", "is a file, and a store is a folder")):
        code, (line,) = invoke("loop.toml", "--output-dir", "loop", "--store", path)
        assert code == 2
        assert message in line
    code, (line,) = invoke("loop.toml", "--output-dir", "/proc/loop")
    assert code == 1
    assert "cannot write /proc/loop" in line
    assert (here / "thesis" / "thesis.txt").read_text() == "mine"
    assert (here / "loop.toml").read_text() == FILE


def test_prompts_that_are_trained_on_and_evaluated_are_counted(here: Path):
    (here / "mine.txt").write_text("a red circle\na blue square\na green circle\n")
    said: list[str] = []
    refuse_impossible_loop(
        little("generate.prompts=mine.txt", "eval.prompts=mine.txt", "eval.limit=2"), [], said.append
    )
    assert len(said) == 1
    assert said[0].startswith("2 prompts of the 2 to evaluate on may be trained on too")
    refuse_impossible_loop(little(), [], said.append)
    assert len(said) == 1


@pytest.mark.slow(reason="runs rounds of a loop")
def test_pairs_that_generate_made_before_are_refused_because_they_have_no_round(here: Path):
    assert (here / "loop.toml").exists()
    settings = little("loop.prompts_per_round=2", "generate.limit=2", store="before")
    generate(replace(settings.generate_config(1), prompts="shapes"), PairStore.create("before"))
    with pytest.raises(UsageError, match="2 pairs of round 1 are in before from another run, and belong to no round"):
        run_loop(settings, silent)
    assert PairStore.open("before").rows("select count(*) from pairs") == [(2,)]


@pytest.mark.slow(reason="runs rounds of a loop")
def test_a_margin_that_leaves_no_pair_can_be_lowered_and_no_image_is_generated_again(here: Path):
    def high(margin: float) -> LoopSettings:
        return little(f"loop.min_margin={margin}", "loop.prompts_per_round=3", "train.max_train_steps=1", rounds=1)

    with pytest.raises(
        NothingToTrainOnError,
        match=r"round 1 has no pair to train on: \d pairs of it are decided, with margins up to [\d.]+; lower min_margin of "
        r"\[loop\], or relax where of \[train\]\. Images and scores are kept",
    ):
        run_loop(high(1000.0), silent)
    before = store_of(here).rows("select * exclude (run_id) from generations order by all")
    assert len(before) == 6
    result = run_loop(high(0.0), silent)
    assert result["stopped"] == "the round is done"
    query = "select * exclude (run_id) from generations where seed = 0 order by all"  # the evaluation has seed 1
    assert store_of(here).rows(query) == before
    with pytest.raises(UsageError, match=r"loop\.min_margin was 0\.0 and is 1\.0"):
        run_loop(high(1.0), silent)


def test_later_rounds_need_pairs_too(finished: Path):
    store = store_of(finished)
    config = little("loop.min_margin=1000.0").train_config(2, "redness")
    with pytest.raises(NothingToTrainOnError, match=r"round 2 has no pair to train on: 6 pairs of it are decided"):
        refuse_nothing_to_train_on(2, store, config)
    nobody = little().train_config(2, "nobody")
    with pytest.raises(NothingToTrainOnError, match="round 2 has no pair to train on: all are ties or have no scores"):
        refuse_nothing_to_train_on(2, store, nobody)
    refuse_nothing_to_train_on(2, store, little().train_config(2, "redness"))


@pytest.mark.slow(reason="runs rounds of a loop")
def test_a_store_holds_the_rounds_of_one_loop(finished: Path):
    before = store_content(finished)
    other = little("loop.seed=5", output_dir="other", store="loop/store")
    with pytest.raises(UsageError, match=r"holds the rounds of another loop, .* name another folder with --store"):
        run_loop(other, silent)
    with pytest.raises(UsageError, match=r"the prompts of \[generate\] have changed since this loop began"):
        refuse_other_loop(little(), store_of(finished), "another hash")
    with pytest.raises(UsageError, match="whose store is loop/store; name it with --store"):
        run_loop(little(store="fresh"), silent)
    with (
        store_of(finished).stage_lock("loop", "rounds"),
        pytest.raises(BusyError, match=r"this loop run of loop/store is in use by process \d+"),
    ):
        run_loop(little(rounds=3), silent)
    assert store_content(finished) == before
    (finished / "loop" / "store").rename("elsewhere")
    for store in (None, "fresh"):
        with pytest.raises(UsageError, match=r"the store (loop/store|fresh) does not hold round 1 of the loop loop"):
            run_loop(little(store=store), silent)
    assert not Path("fresh").exists()
    PairStore.create("fresh")
    with pytest.raises(UsageError, match="the store fresh does not hold round 1 of the loop loop"):
        run_loop(little(store="fresh"), silent)
    assert run_loop(little(store="elsewhere"), silent)["store"] == "elsewhere"


def test_evaluation_prompts_stay_the_same_in_all_rounds(finished: Path):
    assert (finished / "loop.toml").exists()
    rounds = finished_rounds(Path("loop"))
    with pytest.raises(UsageError, match="the evaluation prompts, shapes-heldout, have changed since round 1"):
        refuse_impossible_loop(little("eval.limit=11"), rounds)
    refuse_impossible_loop(little(), rounds)


def _removed(folder: Path) -> None:
    shutil.rmtree(folder / "loop" / "round-2")


def _changed(folder: Path) -> None:
    (folder / "loop" / "round-2" / "pytorch_lora_weights.safetensors").write_bytes(b"x")


def _base_removed(folder: Path) -> None:
    shutil.rmtree(folder / "loop" / "round-1")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_removed, r"loop/round-2 has no finished model, .* move loop/round-2\.json away"),
        (_changed, "safetensors has changed since train wrote it; restore it, or train again"),
        (_base_removed, "round-1, which does not exist; restore it"),
    ],
)
def test_a_model_that_the_next_round_needs_is_missed_at_once(
    finished: Path, damage: Callable[[Path], None], message: str
):
    damage(finished)
    original = store_content(finished)
    # the copy remembers where it was made
    record = finished / "loop" / "round-2" / "prefloop.json"
    if record.exists():
        values = json.loads(record.read_text())
        values["trained_on"]["folder"] = str(finished / "loop" / "round-1")
        record.write_text(json.dumps(values))
    with pytest.raises(IntegrityError, match=message):
        run_loop(little(rounds=3), silent)
    assert store_content(finished) == original


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"number": 1}', "[" * 100_000, '"text"'])
def test_a_damaged_record_is_named_with_what_brings_it_back(finished: Path, damage: str):
    record = finished / "loop" / "round-1.json"
    record.write_text(damage)
    with pytest.raises(IntegrityError, match=r"round-1\.json is not what the loop wrote; move it away") as caught:
        run_loop(little(), silent)
    assert "\n" not in str(caught.value)
    assert record.read_text() == damage


def test_a_record_of_another_round_is_not_taken_for_this_one(finished: Path):
    shutil.copyfile(finished / "loop" / "round-1.json", finished / "loop" / "round-2.json")
    with pytest.raises(IntegrityError, match=r"round-2\.json is not what the loop wrote"):
        finished_rounds(Path("loop"))


@pytest.mark.slow(reason="runs rounds of a loop")
def test_a_record_or_a_report_that_does_not_fit_on_the_disk_leaves_the_earlier_one(finished: Path):
    path, page = finished / "loop" / "round-1.json", finished / "loop" / "report.html"
    result = read_round(path)
    assert isinstance(result, RoundResult)
    before = {each: each.read_bytes() for each in (path, page)}
    with content.no_file_beyond(200):
        with pytest.raises(WriteError, match=r"cannot write .*round-1\.json \(\d+ bytes\): File too large"):
            write_round(path, result)
        with pytest.raises(PrefloopError, match="cannot write"):
            run_loop(little(), silent)
    assert {each: each.read_bytes() for each in before} == before
    assert not list((finished / "loop").glob(".*.tmp"))
    assert run_loop(little(), silent)["stopped"] == "all 2 rounds are done"


def test_an_image_that_the_report_needs_is_named(finished: Path):
    shutil.rmtree(finished / "loop" / "store" / "images")
    with pytest.raises(PrefloopError, match=r"cannot read loop/store/images/.*\.png: No such file or directory"):
        run_loop(little(), silent)


def test_a_report_shows_scorers_that_only_some_rounds_have(finished: Path):
    # as if darkness had been nan for every image of round 1
    path = finished / "loop" / "round-1.json"
    values = json.loads(path.read_text())
    base = values["against_base"]["scorers"].pop("darkness")["base_mean"]
    del values["against_previous"]["scorers"]["darkness"]
    for row in values["prompts"]:
        del row["scorers"]["darkness"]
    path.write_text(json.dumps(values))
    result = run_loop(little(), silent)
    assert result["best"]["chosen_by"] == ["redness"]  # darkness says nothing of round 1
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", (finished / "loop" / "report.html").read_text()))
    (second,) = (row for row in result["rounds"] if row["number"] == 2)
    rate = f"{100 * second['against_base']['scorers']['darkness']['win_rate']:.1f} %"
    assert re.search(rf"darkness no result {rate}", text)
    assert re.search(rf"darkness {base:.4f} no result", text)


def test_a_summary_without_a_second_half_says_so():
    best = {"number": 1, "reported": {}, "beats_base": True}
    paths = {"result": "loop/result", "report": "loop/report.html"}
    result = {"best": best, "rounds": [{}, {}], "stopped": "all 2 rounds are done", **paths}
    assert "kept round 1: no win rates on prompts that did not choose it, because there was one prompt" in summary_text(
        result
    )


def test_the_cure_for_missing_weights_is_a_setting_of_the_loop(here: Path):
    line = "prefloop: pickscore lacks yuvalkirstain/PickScore_v1: "
    cure = """`--set 'relabel.checkpoints={"pickscore"="shapes"}'`"""
    ended = RUNNER.invoke(app, ["loop"])
    assert ended.exit_code == 1
    assert ended.stderr.startswith(line)
    assert ended.stderr.endswith(f"; {cure} uses the built-in world's\n")
    assert [path.name for path in here.iterdir()] == ["loop.toml"]
    settings = read_loop(None, {}, ['relabel.checkpoints={"pickscore"="shapes"}'])
    assert settings.relabel_config().checkpoints == {"pickscore": "shapes"}
