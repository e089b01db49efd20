"""The scorers, servers and clients of docs/choice-models.md and CONTRIBUTING.md run as written."""

import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from content import TESTS, add_image, add_pair, add_prompt, environment
from little_scorers import Redness
from PIL import Image
from prefloop.cli import app
from prefloop.relabel import RelabelConfig
from prefloop.relabel.scorers.registry import load_scorer
from prefloop.relabel.stage import relabel
from prefloop.store import PairStore
from prefloop.store.images import png_bytes
from test_scorer_server import served
from typer.testing import CliRunner

RUNNER = CliRunner()
ROOT = TESTS.parent
PAGE = (ROOT / "docs" / "choice-models.md").read_text()


def block(text: str, contains: str) -> str:
    (found,) = [code for code in re.findall(r"```(?:python|sh)\n(.*?)```", text, re.S) if contains in code]
    return found


def test_the_example_of_contributing_passes_its_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (tmp_path / "colorfulness.py").write_text(block(text, "# colorfulness.py"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (command,) = re.findall(r"`prefloop (scorers check [^`]+)`", text)
    ended = RUNNER.invoke(app, command.split())
    assert (ended.exit_code, " pass " in ended.stdout, "colorfulness@1" in ended.stdout) == (0, True, True)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def test_the_documented_server_scores_as_written(store: PairStore, tmp_path: Path):
    code, port = block(PAGE, "# sharpness.py"), free_port()
    (tmp_path / "sharpness.py").write_text(code)
    assert "`python sharpness.py 8600`" in PAGE
    prompt = add_prompt(store, "one")
    halved = Image.new("RGB", (8, 8))
    halved.paste((255, 255, 255), (0, 0, 4, 8))
    plain = add_image(store, (9, 9, 9))
    row = store.write_image(png_bytes(halved), 8, 8)
    store.append("images", [row])
    add_pair(store, prompt, plain, row["image_id"])
    store.ingest()
    process = subprocess.Popen(
        [sys.executable, "sharpness.py", str(port)], cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 20
        while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < deadline:
            time.sleep(0.05)
        summary = relabel(RelabelConfig(scorers=(f"http://127.0.0.1:{port}/score",)), store)
    finally:
        process.kill()
        process.wait()
    assert summary["scored"] == {"sharpness": 2}
    assert store.rows("select labeler, chosen from preferences") == [("sharpness", row["image_id"])]


def test_the_documented_client_gets_the_scorers_scores():
    images = [Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 200))]
    names: dict[str, Any] = {}
    exec(compile(block(PAGE, "def rewards("), "docs/choice-models.md", "exec"), names)
    scorer = load_scorer("hps", "shapes")
    with served(scorer) as url:
        got = names["rewards"](["a red circle", "a red circle"], images, url)
    assert got == scorer.score(["a red circle", "a red circle"], images).tolist()


def test_the_documented_curl_commands_work(tmp_path: Path):
    Image.new("RGB", (4, 4), (200, 50, 0)).save(tmp_path / "image.png")
    commands = block(PAGE, "curl -s")
    with served(Redness()) as url:
        ended = subprocess.run(
            ["bash", "-c", commands.replace("http://127.0.0.1:8600/score", shlex.quote(url))],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert '{"name":"redness","revision":"1","needs_prompt":false' in ended.stdout
    assert ended.stdout.endswith('{"scores":[150.0],"revision":"1"}')
