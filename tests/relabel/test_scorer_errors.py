"""A scorer that fails is reported in one line that names it, with the right exit code; numbers of any form just work."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from content import fill, finished
from prefloop.cli import app
from prefloop.relabel import RelabelConfig
from prefloop.relabel.stage import relabel
from prefloop.store import PairStore
from typer.testing import CliRunner

RUNNER = CliRunner()

FAULTS = {
    # scorer, exit code, part of the line
    "Raises": (1, r"the scorer raises failed: KeyError: 'no such key\nand a second line' ("),
    "Exits": (1, "the scorer exits failed: SystemExit: enough ("),
    "Strings": (1, "the scorer strings failed: TypeError: expected numbers, got values such as ['"),
    "Nothings": (1, "the scorer nothings failed: TypeError: expected numbers"),
    "Columns": (1, "columns gave scores of shape (2, 1) for 2 images"),
    "NeedsMore": (
        2,
        "cannot be created: its constructor requires folder, size, but only checkpoint, device and dtype are passed",
    ),
    "CannotBeMade": (1, "'odd_scorers:CannotBeMade' cannot be created: FileNotFoundError: no file here ("),
    "NumberedName": (2, "a scorer's name must be a printable text"),
    "NoTemperature": (2, "the temperature of redness must be a finite number above 0, got 0.0"),
    "OddSources": (1, "the scorer odd-sources failed: TypeError: Object of type object is not JSON serializable"),
    "EmbedsTooFew": (1, "embeds-too-few gave embeddings of shape (1, 3) for 2 inputs"),
    "PreprocessFails": (1, "the scorer preprocess-fails failed: ZeroDivisionError: by zero ("),
    "PromptsFail": (1, "the scorer prompts-fail failed: IndexError: index out of range in self ("),
    "CountFails": (1, "the scorer count-fails failed: OSError: no tokenizer ("),
    "Judges": (1, "judges answered '0.7'; choose() must give 1, 0.5, 0 or None"),
    "JudgesInTwoColumns": (1, "judges-in-two-columns answered '[1.0, 1.0]'; choose() must give 1, 0.5, 0 or None"),
    "JudgeChanges": (1, "the scorer judge-changes@unknown is judge-changes@2 after its first batch"),
    "JudgesTwice": (1, "judges-twice gave 2 answers for 1 pairs"),
    "Generates": (1, "the scorer generates failed: TypeError: expected numbers, got values such as [<generator object"),
    "Complex": (1, "the scorer complex failed: TypeError: expected real numbers, got a tensor of torch.complex64"),
    "RaisesTheUnprintable": (1, "the scorer unprintable failed: UnprintableError: no message ("),
    "RevisionFails": (1, "'odd_scorers:RevisionFails' cannot be created: RuntimeError: no weights ("),
    "RevisionFailsLater": (1, "the scorer fails-later failed: RuntimeError: no weights ("),
    "NoRevision": (2, "the revision of redness must be a printable text, got None"),
    "RevisionChanges": (1, "the scorer late@unknown is late@2 after its first batch; its revision must be known"),
    "ColumnsTwice": (
        2,
        "the columns of columns-twice must be different names, each a printable text without @; got ('sigma'",
    ),
    "ColumnsInAText": (2, "the columns of columns-in-a-text must be different names"),
    "Person": (
        2,
        "a scorer's name must be a printable text without @, at most 100 characters, not human:…; got 'human:me'",
    ),
}


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and "scoring by" not in line and "judging by" not in line]


@pytest.mark.parametrize("kind", FAULTS)
def test_a_scorer_that_fails_is_named_in_one_line(store: PairStore, kind: str):
    fill(store, 1)
    code, message = FAULTS[kind]
    ended = RUNNER.invoke(app, ["relabel", "--scorer", f"odd_scorers:{kind}", "--store", str(store.path)])
    assert (ended.exit_code, ended.stdout) == (code, ""), ended.exception
    (line,) = lines(ended.stderr)
    assert message in line
    if message.endswith("("):  # where it failed, in its own file
        assert "odd_scorers.py:" in line
    assert store.rows("select count(*) from scores") == [(0,)]


@pytest.mark.parametrize("kind", ["Raises", "Strings", "Columns", "NeedsMore", "Generates", "RevisionFails"])
def test_checking_a_scorer_that_fails_reports_the_same(kind: str):
    code, message = FAULTS[kind]
    ended = RUNNER.invoke(app, ["scorers", "check", f"odd_scorers:{kind}"])
    assert (ended.exit_code, ended.stdout) == (code, ""), ended.exception
    (line,) = lines(ended.stderr)
    assert message in line


@pytest.mark.parametrize("kind", ["CannotBeMade", "RevisionFails", "Raises", "Exits", "Columns", "PromptsFail"])
def test_an_evaluation_by_a_scorer_that_fails_reports_the_same(
    store: PairStore, tmp_path: Path, tiny_pipeline: Path, kind: str
):
    other = shutil.copytree(tiny_pipeline, tmp_path / "other")
    (other / "note.json").write_text("{}")
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    words = f"eval --model {other} --baseline {tiny_pipeline} --prompts {tmp_path / 'prompts.txt'} --store {store.path}"
    words += f" --num-inference-steps 1 --images-per-prompt 1 --scorer odd_scorers:{kind}"
    ended = RUNNER.invoke(app, words.split())
    code, message = FAULTS[kind]
    assert (ended.exit_code, ended.stdout) == (code, ""), ended.exception
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("kind", "choices"), [("JudgesInTensors", [("a", 3)]), ("JudgesInAList", [("b", 2)])])
def test_a_judges_answers_may_be_numbers_of_any_kind(store: PairStore, kind: str, choices: list[tuple[str, int]]):
    fill(store, 3)
    relabel(RelabelConfig(scorers=(f"odd_scorers:{kind}",), max_unreadable=0.5), store)
    assert store.rows("select choice, count(*) from labels group by all") == choices


def test_what_a_scorer_prints_goes_to_stderr(store: PairStore):
    fill(store, 1)
    words = ["relabel", "--scorer", "odd_scorers:Noise", "--store", str(store.path), "--json"]
    ended = RUNNER.invoke(app, words)
    assert json.loads(ended.stdout)["scored"] == {"owner/noise": 2}
    assert "loading weights\n" in ended.stderr
    assert "100 %\n" in ended.stderr
    checked = RUNNER.invoke(app, ["scorers", "check", "odd_scorers:Noise"])
    assert len(checked.stdout.splitlines()) == 1
    assert "loading weights\n100 %\n" in checked.stderr


def test_none_is_a_score_that_is_not_finite(store: PairStore):
    fill(store, 1)
    words = ["relabel", "--scorer", "odd_scorers:SomeNones", "--store", str(store.path)]
    ended = RUNNER.invoke(app, words)
    assert (ended.exit_code, "1 of 2 scores of some-nones@1 are not finite" in ended.stderr) == (3, True)
    assert RUNNER.invoke(app, [*words, "--max-unreadable", "0.5"]).exit_code == 0
    assert store.rows("select score from scores where isfinite(score)") == [(110.0,)]


def test_scores_from_before_a_failure_are_kept(store: PairStore, monkeypatch: pytest.MonkeyPatch):
    import little_scorers

    fill(store, 2)
    calls = []
    score = little_scorers.Redness.score

    def second_fails(self: object, prompts: list, images: list) -> np.ndarray:
        calls.append(len(images))
        if len(calls) == 2:
            raise ValueError("gone")
        return score(self, prompts, images)  # type: ignore[arg-type]  # an instance

    monkeypatch.setattr(little_scorers.Redness, "score", second_fails)
    words = ["relabel", "--scorer", "little_scorers:Redness", "--batch-size", "2", "--store", str(store.path)]
    assert RUNNER.invoke(app, words).exit_code == 1
    store.ingest()
    assert store.rows("select count(*) from scores") == [(2,)]
    assert RUNNER.invoke(app, words).exit_code == 0
    assert calls == [2, 2, 2]


@pytest.mark.parametrize("kind", ["Halves", "Gradients", "ListOfGradients", "EmbedsInHalf"])
def test_tensors_in_bfloat16_or_with_a_gradient_are_scores(store: PairStore, kind: str):
    fill(store, 1)
    relabel(RelabelConfig(scorers=(f"odd_scorers:{kind}",)), store)
    # of the colors 10 and 110, which bfloat16 represents exactly
    assert store.rows("select score from scores order by score") == [(10.0,), (110.0,)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os:system", "'os:system' is not a scorer but a builtin_function_or_method"),
        ("os:nothing", "cannot be imported: AttributeError: module 'os' has no attribute 'nothing'"),
        ("builtins:dict", "'builtins:dict' is not a scorer but a class without a method score"),
        ("broken:Scorer", "'broken:Scorer' cannot be imported: RuntimeError: no GPU ("),
        ("leaves:Scorer", "'leaves:Scorer' cannot be imported: SystemExit: 3 ("),
        ("unfinished:Scorer", "'unfinished:Scorer' cannot be imported: SyntaxError: "),
        ("no_such_module:Scorer", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'\n"),
        (":Scorer", "cannot be imported: ValueError: Empty module name"),
    ],
)
def test_a_name_that_is_not_a_scorer_is_refused_before_anything_is_done(
    store: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
):
    (tmp_path / "broken.py").write_text("raise RuntimeError('no GPU')")
    (tmp_path / "leaves.py").write_text("import sys; sys.exit(3)")
    (tmp_path / "unfinished.py").write_text("class Scorer(\n")
    monkeypatch.syspath_prepend(tmp_path)
    for words in (["relabel", "--store", str(store.path), "--scorer"], ["scorers", "check"]):
        ended = RUNNER.invoke(app, [*words, name])
        assert (ended.exit_code, ended.stdout) == (2, ""), ended.exception
        assert message in ended.stderr
        assert len(lines(ended.stderr)) == 1
    assert store.rows("select count(*) from runs") == [(0,)]


MINE = """
from helper_of_mine import value
class Scorer:
    name, revision, needs_prompt = "mine", "1", False
    def score(self, prompts, images):
        import later_helper_of_mine
        return [value + at for at in range(len(images))]
"""


def test_a_scorer_in_the_current_folder_is_found_by_name(
    store: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "scorer_of_mine.py").write_text(MINE)
    (folder / "helper_of_mine.py").write_text("value = 1.0")
    (folder / "later_helper_of_mine.py").write_text("")
    (folder / "json.py").write_text("raise RuntimeError('imported instead of the real one')")
    fill(store, 1)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(folder)
    # as with the console script: the current folder is not on the path, and stays off it for other scorers
    words = ["relabel", "--store", str(store.path), "--scorer"]
    before = list(sys.path)
    assert RUNNER.invoke(app, [*words, "little_scorers:Darkness"]).exit_code == 0
    assert sys.path == before
    ended = RUNNER.invoke(app, [*words, "scorer_of_mine:Scorer"])
    assert ended.exit_code == 0, ended.output
    assert store.rows("select score from scores where scorer = 'mine@1' order by score") == [(1.0,), (2.0,)]


def test_python_m_finds_a_scorer_in_the_current_folder(tmp_path: Path):
    (tmp_path / "helper_of_mine.py").write_text("value = 1.0")
    (tmp_path / "later_helper_of_mine.py").write_text("")
    (tmp_path / "scorer_of_mine.py").write_text(MINE)
    code, output = finished("scorers", "check", "scorer_of_mine:Scorer", cwd=tmp_path)
    assert code == 5, output  # it scores by position, and the right image comes first
    assert "FAIL  right 1.0000  wrong 2.0000  mine@1" in output
