"""docs/data.md: every command runs as written, on small datasets of the real schemas, and every format is listed."""

import re
import shlex
from pathlib import Path

import little_datasets as little
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefloop.cli import app
from prefloop.store import PairStore
from prefloop.store.check import check
from prefloop.store.exporters.config import FORMATS
from prefloop.store.importers.formats import LABELERS
from prefloop.store.importers.pairs import COLUMN_NAMES
from typer.testing import CliRunner

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


@pytest.mark.slow(reason="runs the commands of a document")
def test_every_command_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    little.pickapic(Path("pickapic/train.parquet"))
    little.preferences(Path("open-image-preferences/train.parquet"))
    little.hpd(Path("HPDv2"))
    little.imagereward(Path("ImageRewardDB"))
    little.folders(Path("mine"))
    little.simpletuner(Path("win-lose"))
    little.kohya(Path("kohya"))
    little.flow_factory(Path("flow-factory"))
    little.jsonl(Path("lines")).rename("pairs.jsonl")
    Path("lines/pictures").rename("pictures")
    little.unlabelled(Path())
    for names in (("good", "bad"), ("keep", "drop")):
        little.folders(Path("sorted"), names=names)
        (Path("sorted") / names[1] / "0.txt").write_text("prompt 0")  # each prompt in both, for --pairing all
        (Path("sorted") / names[1] / "1.txt").write_text("prompt 1")
        (Path("sorted") / names[1] / "2.txt").write_text("prompt 2")
    rows = [{"text": "one", "good": little.first(9), "bad": little.second(9), "style": "x", "year": 1}]
    pq.write_table(pa.Table.from_pylist(rows), "my.parquet")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S) for line in block.splitlines()]
    assert lines
    for line in lines:
        ended = CliRunner().invoke(app, shlex.split(line)[1:])
        assert ended.exit_code == 0, (line, ended.stderr)
        assert "excluded" not in ended.stdout, (line, ended.stdout)
        assert "nothing to do" not in ended.stdout or "migrate" in line, (line, ended.stdout)
    assert check(PairStore.open("pairs")) == []


def test_every_format_column_and_labeler_is_listed():
    for name in (*LABELERS, *FORMATS, *COLUMN_NAMES):
        assert f"`{name}`" in TEXT, name
    for form, labeler in LABELERS.items():
        assert re.search(rf"^\| `{form}` .*`{labeler}` \|$", TEXT, re.M), form
