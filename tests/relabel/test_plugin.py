"""A scorer of another distribution is found by its entry point: one file, one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from content import TESTS, add_pair, add_picture, add_prompt, prefloop
from prefloop.store import PairStore


def test_a_scorer_of_an_installed_distribution_is_listed_and_labels(store: PairStore, tmp_path: Path):
    shutil.copytree(TESTS / "plugin", tmp_path / "source")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", tmp_path / "site"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, tmp_path / "source"], check=True)
    prompt = add_prompt(store, "grass")
    red, green = add_picture(store, (200, 0, 0)), add_picture(store, (0, 200, 0))
    add_pair(store, prompt, red, green)
    store.ingest()

    there = {"cwd": tmp_path, "PYTHONPATH": str(tmp_path / "site")}
    listed = json.loads(prefloop("scorers", "ls", "--json", **there).stdout)
    assert {
        "name": "greenness",
        "needs_prompt": False,
        "judge_only": False,
        "source": "prefloop_greenness:Greenness",
    } in listed
    ended = prefloop("relabel", "--scorer", "greenness", "--store", store.path, "--json", **there)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["scored"] == {"greenness": 2}
    # 200 - 0 against 0 - 200
    assert PairStore.open(store.path).rows("select chosen, margin from preferences") == [(green, 400.0)]

    # without the distribution it is unknown
    gone = prefloop("relabel", "--scorer", "greenness", "--store", store.path, cwd=tmp_path)
    assert gone.returncode == 2
    assert "no scorer is called 'greenness'" in gone.stderr
