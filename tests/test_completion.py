"""What a shell completes, through the protocol that its scripts speak; quick, and without touching the store."""

import os
from pathlib import Path

import pytest
from content import add_image, add_label, add_labeler, fill
from prefloop.cli import app
from prefloop.store import PairStore
from typer.testing import CliRunner

RUNNER = CliRunner()


def offered(typed: str, **environment: str) -> set[str]:
    """What bash is offered after the words typed; the last one is incomplete."""
    words = {"_PREFLOOP_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    ended = RUNNER.invoke(app, [], prog_name="prefloop", env=words | environment)
    assert (ended.exit_code, ended.stderr) == (0, "")
    return set(ended.stdout.split())


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    """A store with two labelers, a model and an evaluation's labeler."""
    store = PairStore.create(tmp_path_factory.mktemp("completion") / "store")
    pairs = fill(store, n_prompts=2)
    for labeler in ("mona", "max", "eval:clip@1"):
        add_labeler(store, labeler)
    add_label(store, pairs[0], "mona", "a")
    image = add_image(store, (1, 2, 3))
    store.append("models", [{"model_id": image, "name": "my-model", "config": "{}"}])
    store.ingest()
    return store


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("train --store STORE --labeler m", {"max", "mona"}),
        ("train --store STORE --labeler ", {"max", "mona"}),  # eval:clip@1 is an evaluation's
        ("relabel --store STORE --fit-temperature mo", {"mona"}),
        ("scorers quality --store STORE --labeler ma", {"max"}),
        ("store export --store STORE --labeler ma", {"max"}),
        ("train --store STORE --model ", {"shapes", "shapes-flow", "my-model"}),
        ("eval --store STORE --baseline my", {"my-model"}),
        ("store schema --store STORE training", {"training_preferences"}),
        ("store query --name round", {"rounds", "round-win-rates"}),
        ("store query --format pa", {"parquet"}),
        ("train --config sdxl", {"sdxl-lora", "sdxl-paper", "sdxl-turbo"}),
        ("loop sd15", {"sd15-lora"}),
        ("generate --prompts d", {"dpg", "drawbench"}),
        ("eval --prompts shapes", {"shapes", "shapes-heldout"}),
        ("eval --benchmark parti", {"parti-win-rate"}),
        ("prompts fetch gen", {"geneval"}),
        ("scorers check hpsv2.", {"hpsv2.1"}),
        ("train --device c", {"cuda", "cpu"}),
        ("generate --dtype b", {"bfloat16"}),
        ("generate --dev", {"--device"}),
        ("store ba", {"backup"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names_are_completed(named: PairStore, typed: str, expected: set[str]):
    assert offered(f"prefloop {typed}".replace("STORE", str(named.path))) == expected


def test_the_store_of_the_environment_is_read(named: PairStore):
    assert offered("prefloop train --labeler mo", PREFLOOP_STORE=str(named.path)) == {"mona"}


@pytest.mark.parametrize("content", [None, b"", b"not a database" * 100])
def test_without_a_usable_store_nothing_is_offered_created_or_printed(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "store").mkdir()
        (tmp_path / "store" / "pairs.duckdb").write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    assert offered(f"prefloop train --store {tmp_path / 'store'} --labeler m") == set()
    assert sorted(tmp_path.rglob("*")) == before
    assert content is None or (tmp_path / "store" / "pairs.duckdb").read_bytes() == content


def test_reading_names_changes_nothing_in_a_store(named: PairStore):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in named.path.rglob("*")}
    assert offered(f"prefloop train --store {named.path} --labeler ma") == {"max"}
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in named.path.rglob("*")} == before


def test_a_store_that_another_process_writes_is_not_waited_for(named: PairStore, tmp_path: Path):
    import subprocess
    import sys
    import time

    hold = (
        f"import duckdb, sys; c = duckdb.connect({str(named.database)!r}); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        start = time.process_time()
        assert offered(f"prefloop train --store {named.path} --labeler m") == set()
        assert time.process_time() - start < 1
    finally:
        process.stdin.close()
        process.wait(30)
    assert os.path.exists(named.database)
