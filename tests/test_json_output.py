"""With --json stdout is one JSON document, whether a command succeeds or fails; the line for people stays on stderr."""

import json
from pathlib import Path
from typing import Any

import pytest
from content import add_label, add_labeler, fill, prefloop
from prefloop.cli import app
from prefloop.store import PairStore
from typer.testing import CliRunner

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    store = PairStore.create(tmp_path_factory.mktemp("json") / "store")
    pairs = fill(store)
    add_labeler(store, "me")
    for pair in pairs:
        add_label(store, pair, "me", "a", margin=1.0)
    store.ingest()
    return store


def document(line: str, store: PairStore) -> tuple[Any, int, str]:
    """The document of a command, its exit code, and what it printed on stderr."""
    words = [str(store.path) if word == "STORE" else word for word in line.split()]
    ended = RUNNER.invoke(app, [*words, "--json"])
    assert isinstance(ended.exception, SystemExit | None), ended.exception
    return json.loads(ended.stdout), ended.exit_code, ended.stderr


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("store ls --store STORE", "labelers"),
        ("store stats --store STORE", "prompts"),
        ("store agreement --store STORE", None),
        ("store check --store STORE", "problems"),
        ("store rebuild --store STORE", "parts"),
        ("store query --list", None),
        ("store query --name rounds --store STORE", None),
        ("store schema --store STORE", None),
        ("store gc --dry-run --store STORE", "images"),
        ("store compact --store STORE", "parts_before"),
        ("store migrate --store STORE", "version_after"),
        ("store backup --output-dir copy --store STORE", "images"),
        ("store merge STORE --store copy", "labels"),
        ("store export --output-dir exported --format csv --store STORE", "pairs"),
        ("raters --store STORE", "raters"),
        ("scorers ls", None),
        ("scorers check oracle", "scorers"),
        ("prompts ls", None),
        ("prompts check shapes-heldout", "n_prompts"),
        ("pair --store STORE", "new_pairs"),
        ("train --recipes", None),
        ("loop --recipes", None),
        ("loop shapes --init mine.toml", "file"),
    ],
    ids=lambda value: value or "a list",
)
def test_a_result_is_one_document(
    filled: PairStore,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    key: str | None,
):
    folder = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(folder)
    if "--store copy" in line:
        assert document("store backup --output-dir copy --store STORE", filled)[1] == 0
    found, code, _ = document(line, filled)
    assert code == 0
    assert isinstance(found, list) if key is None else key in found


FAILING = [
    # arguments; exit code; type; what the message says
    ("store ls --store nowhere", 1, "PrefloopError", "no store at nowhere"),
    ("generate --pairing some", 2, "UsageError", "unknown pairing 'some'"),
    ("store query selct --store STORE", 2, "UsageError", "syntax error"),
    (
        "train --labeler me --output-dir out --store STORE --where marg>1",
        2,
        "UsageError",
        "--where 'marg>1' cannot be used",
    ),
    # the parser's own
    ("train --labelr me", 2, "UsageError", "no option --labelr; did you mean --labeler?"),
    ("train --seed x", 2, "UsageError", "--seed must be a valid integer, got 'x'"),
    ("train --pairs 0", 2, "UsageError", "--pairs must be positive and at most 1000000000, got 0"),
    ("store import", 2, "UsageError", "missing argument SOURCE: a file, a folder, or a dataset's hub id"),
    ("scorers quality", 2, "UsageError", "missing option --labeler: labeler whose choices"),
    ("pair extra", 2, "UsageError", "unexpected argument extra"),
    ("trian", 2, "UsageError", "no command trian; did you mean train?"),
    ("gc", 2, "UsageError", "no command gc; did you mean"),
    ("store qury", 2, "UsageError", "no command qury; did you mean query?"),
    ("store backup --store STORE", 2, "UsageError", "name a folder to create with --output-dir"),
    ("store query --format csv from(pairs) --store STORE", 2, "UsageError", "--json and --format csv are two formats"),
]


@pytest.mark.parametrize(("line", "code", "kind", "message"), FAILING, ids=[line for line, *_ in FAILING])
def test_an_error_is_one_document_and_one_line(
    filled: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, code: int, kind: str, message: str
):
    monkeypatch.chdir(tmp_path)
    found, exit_code, stderr = document(line, filled)
    assert found.keys() == {"error"}
    assert found["error"] == {"message": found["error"]["message"], "exit_code": code, "type": kind}
    assert message in found["error"]["message"]
    assert exit_code == code
    assert stderr.splitlines()[0] == f"prefloop: {found['error']['message']}"
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_is_bad_news_has_the_error_beside_it(tmp_path: Path):
    store = PairStore.create(tmp_path / "store")
    fill(store)
    next((store.path / "images").rglob("*.png")).unlink()
    found, code, stderr = document("store check --store STORE", store)
    assert code == found["error"]["exit_code"] == 5
    assert found["error"]["type"] == "IntegrityError"
    assert [problem["what"] for problem in found["problems"]] == ["missing image"]
    assert len(stderr.splitlines()) == 1


def test_without_json_an_error_leaves_stdout_empty_and_no_earlier_call_counts(filled: PairStore):
    assert document("trian", filled)[1] == 2
    for line in ("trian", "store ls --store nowhere", "train --seed x"):
        ended = RUNNER.invoke(app, line.split())
        assert (ended.stdout, ended.exit_code in (1, 2)) == ("", True)


def test_json_after_two_dashes_is_an_argument(filled: PairStore):
    ended = RUNNER.invoke(app, ["store", "query", "--store", str(filled.path), "--", "--json"])
    assert (ended.exit_code, ended.stdout) == (2, "")


@pytest.mark.slow(reason="starts processes")
def test_a_process_prints_one_document_for_each_kind_of_end(filled: PairStore, tmp_path: Path):
    good = prefloop("store", "stats", "--json", "--store", filled.path, cwd=tmp_path)
    assert (good.returncode, json.loads(good.stdout)["pairs"], good.stderr) == (0, 3, "")
    bad = prefloop("train", "--labelr", "me", "--json", cwd=tmp_path)
    assert json.loads(bad.stdout)["error"]["exit_code"] == bad.returncode == 2
    assert bad.stderr == ("prefloop: no option --labelr; did you mean --labeler?\nhelp: prefloop train --help\n")
