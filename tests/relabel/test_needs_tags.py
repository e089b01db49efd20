"""A scorer that needs tags is called with those of each prompt, wherever scorers are called."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from content import TESTS, add_image, add_pair, add_prompt
from prefloop.cli import app
from prefloop.eval import EvalConfig
from prefloop.eval.stage import evaluate
from prefloop.relabel import RelabelConfig
from prefloop.relabel.stage import relabel
from prefloop.store import PairStore, UsageError
from typer.testing import CliRunner

RUNNER = CliRunner()
CONFIG = RelabelConfig(scorers=("little_scorers:Tagged",))
PAGE = (TESTS.parent / "docs" / "choice-models.md").read_text()


def tagged_pair(store: PairStore, prompt: str, red: int, **tags: str) -> None:
    """A dull image and a red one of a prompt."""
    images = add_image(store, (red, 0, 7)), add_image(store, (200, 0, 7))
    add_pair(store, add_prompt(store, prompt, **tags), *images)


def scores(store: PairStore) -> dict[str, list[float]]:
    query = "select prompt, list(score order by score) from scores join prompts using (prompt_id) group by all"
    return dict(store.rows(query))


def test_each_image_is_scored_with_its_own_prompts_tags(store: PairStore):
    tagged_pair(store, "double", 10, factor="2")
    tagged_pair(store, "reversed", 20, factor="-1", other="ä")
    store.ingest()
    summary = relabel(CONFIG, store)
    # red times the factor
    assert scores(store) == {"double": [20.0, 400.0], "reversed": [-200.0, -20.0]}
    assert (summary["scored"], summary["excluded"]) == ({"tagged": 4}, {})


def test_images_of_prompts_without_tags_are_left_out_and_counted(store: PairStore):
    tagged_pair(store, "double", 10, factor="2")
    tagged_pair(store, "without", 20)
    store.ingest()
    for scored in (2, 0):
        summary = relabel(CONFIG, store)
        assert (summary["scored"], summary["labels"]["undecided"]) == ({"tagged": scored}, 1)
        assert summary["excluded"] == {"images whose prompt has no tags": 2}
    assert scores(store).keys() == {"double"}


def test_a_store_without_any_tags_is_refused(store: PairStore):
    tagged_pair(store, "without", 20)
    store.ingest()
    ended = RUNNER.invoke(app, ["relabel", "--scorer", CONFIG.scorers[0], "--store", str(store.path)])
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert "tagged reads the tags of prompts, and no prompt of " in ended.stderr
    assert "a prompt file's other columns are its tags" in ended.stderr


def eval_config(pipeline: Path, folder: Path, lines: str) -> EvalConfig:
    (folder / "prompts.csv").write_text(lines)
    other = shutil.copytree(pipeline, folder / "other", dirs_exist_ok=True)
    (other / "note.json").write_text("{}")
    return EvalConfig(
        models=(str(other),),
        baseline=str(pipeline),
        prompts=str(folder / "prompts.csv"),
        scorers=CONFIG.scorers,
        images_per_prompt=1,
        num_inference_steps=1,
        n_resamples=100,
        output_dir=str(folder / "report"),
    )


def test_an_evaluation_passes_tags_and_refuses_prompts_without_before_it_generates(
    store: PairStore, tmp_path: Path, tiny_pipeline: Path
):
    with pytest.raises(UsageError, match=r"no prompt of .*prompts\.csv has any"):
        evaluate(eval_config(tiny_pipeline, tmp_path, "prompt\na\nb\n"), store)
    assert store.rows("select count(*) from generations") == [(0,)]
    evaluate(eval_config(tiny_pipeline, tmp_path, "prompt,factor\na,0\nb,-1\n"), store)
    found = scores(store)  # red times 0 and times -1; both models generate the same image
    assert (found["a"], found["b"][0] < 0) == ([0.0], True)


def test_check_gives_the_example_tags_or_those_that_are_asked_for():
    words = ["scorers", "check", "little_scorers:Tagged"]
    failed = RUNNER.invoke(app, words)
    assert failed.exit_code == 1
    assert "the scorer tagged failed: KeyError: 'factor' (" in failed.stderr
    # the right image is less red, 222 against 232
    assert RUNNER.invoke(app, [*words, "--tags", '{"factor": "-1"}']).exit_code == 0
    assert RUNNER.invoke(app, [*words, "--tags", '{"factor": "1"}']).exit_code == 5
    refused = RUNNER.invoke(app, [*words, "--tags", "factor"])
    assert (refused.exit_code, "--tags must be JSON" in refused.stderr) == (2, True)


def test_the_documented_scorer_reads_tags_as_written(store: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ((file, code),) = re.findall(r"```python\n# (named_\w+\.py)\n(.*?)```", PAGE, re.S)
    assert f"--scorer {file.removesuffix('.py')}:NamedColor" in PAGE
    (tmp_path / file).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    red, blue = add_image(store, (250, 0, 0)), add_image(store, (0, 0, 250))
    for tags in ({"color": "blue"}, {"color": "red"}, {"style": "flat"}, {}):
        add_pair(store, add_prompt(store, f"with {tags}", **tags), red, blue)
    store.ingest()
    command = ["relabel", "--scorer", "named_color:NamedColor", "--store", str(store.path), "--json"]
    ended = RUNNER.invoke(app, [*command, "--max-unreadable", "0.4"])
    assert ended.exit_code == 0, ended.output  # of six scores two are None
    chosen = "select prompt, chosen from preferences order by prompt"
    assert store.rows(chosen) == [("with {'color': 'blue'}", blue), ("with {'color': 'red'}", red)]
    summary = json.loads(ended.stdout)
    assert summary["labels"]["undecided"] == 2
    assert summary["excluded"] == {"images whose prompt has no tags": 2, "not finite": 2}
    words = ["scorers", "check", "named_color:NamedColor"]
    untagged = RUNNER.invoke(app, words)
    assert untagged.exit_code == 5
    assert untagged.stderr == (
        "prefloop: not passed: named_color:NamedColor; a scorer that reads the prompt's tags needs its own with --tags\n"
    )
    checked = RUNNER.invoke(app, [*words, "--tags", '{"color": "red"}'])
    assert checked.exit_code == 0, checked.output
