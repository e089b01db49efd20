"""A scorer of another distribution is found by its entry point."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from content import TESTS, add_image, add_pair, add_prompt, prefloop
from prefloop.relabel import RelabelConfig
from prefloop.relabel.scorers.registry import is_eval_only, load_scorer, load_scorers
from prefloop.relabel.stage import relabel
from prefloop.store import PairStore, UsageError


@pytest.mark.slow(reason="starts processes")
def test_a_scorer_of_an_installed_distribution_is_listed_and_labels(store: PairStore, tmp_path: Path):
    shutil.copytree(TESTS / "plugin", tmp_path / "source")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", tmp_path / "site"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, tmp_path / "source"], check=True)
    prompt = add_prompt(store, "grass")
    red, green = add_image(store, (200, 0, 0)), add_image(store, (0, 200, 0))
    add_pair(store, prompt, red, green)
    store.ingest()

    path = os.pathsep.join(filter(None, (str(tmp_path / "site"), os.environ.get("PYTHONPATH"))))
    environment = {"cwd": tmp_path, "PYTHONPATH": path}
    listed = json.loads(prefloop("scorers", "ls", "--json", **environment).stdout)
    (greenness,) = [scorer for scorer in listed if scorer["name"] == "greenness"]
    assert greenness["source"] == "prefloop_greenness:Greenness"
    assert (greenness["needs_prompt"], greenness["eval_only"]) == (False, False)
    assert (greenness["weights"], greenness["runs"]) == ("unknown", True)  # it does not say what it reads
    ended = prefloop("relabel", "--scorer", "greenness", "--store", store.path, "--json", **environment)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["scored"] == {"greenness": 2}
    # 200 - 0 against 0 - 200
    assert PairStore.open(store.path).rows("select chosen, margin from preferences") == [(green, 400.0)]

    # without the distribution it is unknown
    gone = prefloop("relabel", "--scorer", "greenness", "--store", store.path, cwd=tmp_path)
    assert gone.returncode == 2
    assert "unknown scorer 'greenness'" in gone.stderr


def test_a_scorer_written_for_0_1_gets_its_checkpoint_and_makes_no_labels(store: PairStore):
    scorer: Any = load_scorer("little_scorers:Of01", "folder")
    assert scorer.weights == "folder"
    scorers: Any = load_scorers(["little_scorers:Of01", "little_scorers:Redness"], {"": "folder"})
    assert scorers[0].weights == "folder"
    assert [is_eval_only(scorer) for scorer in scorers] == [True, False]
    with pytest.raises(UsageError, match=r"of-0\.1 is reserved for evaluation"):
        relabel(RelabelConfig(scorers=("little_scorers:Of01",)), store)
