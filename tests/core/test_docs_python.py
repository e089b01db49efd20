"""docs/python.md: every block runs, in order, and prints the output shown below it."""

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```(?:\s+```text\n(.*?)```)?", TEXT, re.S)


@pytest.mark.slow(reason="runs the commands of a document")
def test_every_block_runs_and_prints_the_output_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) == 9
    names: dict = {"__name__": "docs_python"}
    for code, expected in BLOCKS:
        with redirect_stdout(StringIO()) as printed:
            exec(compile(code, "docs/python.md", "exec"), names)
        if expected:
            assert printed.getvalue() == expected, code
    assert (tmp_path / "tuned" / "prefloop.json").exists()
    assert 0 <= names["labelled"]["labels"]["a"] <= 12
