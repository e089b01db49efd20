"""A loop that began when a recipe had a fixed value goes on with it."""

from dataclasses import replace
from pathlib import Path

import pytest
from prefloop.core.errors import UsageError
from prefloop.loop.settings_file import claimed, identity, read_loop, write_settings

TEXT = """
    [loop]
    model = "shapes"
    output_dir = "{folder}"
    [train]
    config = "sd15-lora"
"""


def test_a_loop_goes_on_with_the_validation_steps_that_its_recipe_had(tmp_path: Path):
    (tmp_path / "loop.toml").write_text(TEXT.format(folder=tmp_path / "loop"))
    file = str(tmp_path / "loop.toml")
    new = read_loop(file)
    assert "validation_steps" not in new.train
    begun = replace(new, train={**new.train, "validation_steps": 50})
    with claimed(begun):
        write_settings(begun)
        (tmp_path / "loop" / "round-1").mkdir()
        (tmp_path / "loop" / "round-1" / "metrics.csv").touch()
    assert identity(read_loop(file)) == identity(begun)
    with claimed(read_loop(file)):
        pass
    with (
        pytest.raises(UsageError, match=r"train\.validation_steps was 50 and is 20"),
        claimed(read_loop(file, assignments=["train.validation_steps=20"])),
    ):
        pass
