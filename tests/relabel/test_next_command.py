"""The command that `relabel` suggests can be typed as it stands."""

from pathlib import Path

import pytest
from content import fill
from prefloop.cli import app
from prefloop.store import PairStore
from typer.testing import CliRunner


def test_the_next_command_names_a_folder_that_is_free(
    store: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fill(store, n_prompts=2)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for free in ("tuned", "tuned-2", "tuned-3"):
        ended = CliRunner().invoke(
            app, ["relabel", "--scorer", "test_scorer_columns:Spread", "--store", str(store.path)]
        )
        line = ended.stderr.splitlines()[-1]
        assert line == f"next: prefloop train --labeler spread --output-dir {free} --store {store.path}"
        (work / free).mkdir()
