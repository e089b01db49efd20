"""A loop whose store has lost an image goes on, measures and reports without it, and says so."""

import re
from pathlib import Path
from uuid import UUID

import content
import pytest
from little_loop import WORDS, record, store_of


@pytest.mark.slow(reason="evaluates a round of a loop")
def test_a_round_is_finished_without_an_image_of_the_base_that_is_lost(copied_loop: Path):
    before = record(copied_loop, 2)
    (prompt, base, _), *others = before["samples"]
    lost = store_of(copied_loop).image_path(UUID(base))
    lost.unlink()
    (copied_loop / "loop" / "round-2.json").unlink()
    code, printed = content.finished(*WORDS, cwd=copied_loop)
    assert code == 0, printed
    after = record(copied_loop, 2)
    measured = ("guards", "base_guards")
    assert {name for name in before if before[name] != after[name]} == set(measured)
    assert all(0.2 < after[of][name] / before[of][name] < 5 for of in measured for name in after[of])
    lines = [line for line in printed.splitlines() if lost.name in line]
    assert [line.split(":")[0] for line in lines] == [
        "left out of the report",  # against the base, which alone has the image
        "left out of the measurements of images",
        "left out of the loop's report",
    ]
    page = (copied_loop / "loop" / "report.html").read_text()
    assert prompt not in page
    images = re.findall(r'src="([^"]+)"', page)
    assert len(images) == 1 + len(others) * 3
    assert all((copied_loop / "loop" / image).is_file() for image in images)
