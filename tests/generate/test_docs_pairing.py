"""docs/pairing.md: every command runs as written, and each strategy and column is listed."""

import re
import shlex
from pathlib import Path
from uuid import UUID

import pytest
from content import add_generation, add_image, add_prompt, add_scores
from prefloop.cli import app
from prefloop.generate.pairing import STRATEGIES
from prefloop.store import PairStore
from typer.testing import CliRunner

TEXT = (Path(__file__).parents[2] / "docs" / "pairing.md").read_text()


def small_store(path: Path) -> PairStore:
    """Two images by sd15 and one by tuned of one prompt, with scores."""
    store = PairStore.create(path)
    prompt = add_prompt(store, "a fox", style="photo")
    store.append(
        "models", [{"model_id": UUID(int=n), "name": name, "config": "{}"} for n, name in ((1, "sd15"), (2, "tuned"))]
    )
    images = [add_image(store, (80 * number, 0, 0)) for number in range(3)]
    for model, image in zip((1, 1, 2), images, strict=True):
        add_generation(store, prompt, UUID(int=model), image)
    add_scores(store, "pickscore@1", {(prompt, image): float(number) for number, image in enumerate(images)})
    store.ingest()
    return store


@pytest.mark.slow(reason="runs the commands of a document")
def test_every_pair_command_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    lines = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S) for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines]
    assert {words[0] for words in commands} == {"pair", "label", "relabel", "store"}
    small_store(Path("pairs"))
    for words in commands:
        if words[0] not in ("label", "relabel"):  # those are tested where they are described
            ended = CliRunner().invoke(app, words)
            assert ended.exit_code == 0, (words, ended.output)
    # adjacent makes 2 of the 3 pairs, all the third
    assert PairStore.open("pairs").rows("select count(*) from pairs") == [(3,)]


@pytest.mark.slow(reason="runs the commands of a document")
def test_every_strategy_and_column_is_listed(tmp_path: Path):
    assert re.findall(r"^\| `([a-z-]+)` \|", TEXT, re.M) == list(STRATEGIES)
    columns = [
        name
        for row in re.findall(r"^\| (`prompt`.*|`image_id`.*|`model`.*|`run_id`.*) \|", TEXT, re.M)
        for name in re.findall(r"`(\w+)`", row.split("|")[0])
    ]
    assert len(columns) == 16
    store = small_store(tmp_path / "store")
    for name in columns:
        words = ["pair", "--dry-run", "--store", str(store.path), "--where", f"{name} is null or {name} is not null"]
        ended = CliRunner().invoke(app, words)
        assert ended.stdout.startswith("3 images of 1 prompt"), (name, ended.output)
