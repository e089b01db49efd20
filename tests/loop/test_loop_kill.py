"""A loop that is killed anywhere goes on and ends with the store, weights and numbers of one that nothing disturbed."""

import signal
from collections.abc import Sequence
from pathlib import Path

import content
import pytest
from little_loop import WORDS, die_at, digest, record, store_content, store_of, weights
from prefloop.store.check import check
from test_faults import signalled

# before or after a file gets its name, and after how many of that kind; a process is killed at each, one after the other
EVERYDAY = (
    "after 0 /round-1/prefloop.json$",  # trained, but the round does not know it
    "before 0 /round-1.json$",  # all but the record
    "after 0 -generations-",  # half of the images of round 2
    "before 0 -labels-",
    "after 0 /round-2/checkpoint-1$",
    "before 0 /result/prefloop.json$",  # the weights are there, and not yet a result
)
THOROUGH = (
    "before 0 /loop/loop.json$",
    "after 0 /loop/loop.json$",
    "before 0 /store/pairs.duckdb$",
    "after 0 -runs-",
    "before 0 -prompts-",
    "before 1 -images-",
    "after 0 -pairs-",
    "after 0 -scores-",
    "after 0 -labelers-",
    "after 0 -labels-",
    "before 0 /.run/run.json$",
    "before 0 /round-1/checkpoint-2$",
    "before 0 /round-1/prefloop.json$",
    "before 0 -pairs-",  # of the evaluation
    "after 0 -scores-",
    "after 0 -labels-",
    "after 0 /round-1.json$",
    "after 0 -generations-",
    "before 0 -scores-",
    "after 0 /round-2/checkpoint-1$",
    "before 0 /round-2/pytorch_lora_weights.safetensors$",
    "after 0 -images-",
    "after 0 -pairs-",
    "before 0 /round-2.json$",
    "before 0 /report.html$",
    "after 0 /report.html$",
    "before 0 /result/pytorch_lora_weights.safetensors$",
    "after 0 /result/prefloop.json$",
    "before 0 /result/README.md$",
)


def storm(folder: Path, places: Sequence[str]) -> None:
    for place in places:
        process = content.started(*WORDS, cwd=folder, out=folder / "printed", first=die_at, DIE=place)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, (place, (folder / "printed").read_text())
    code, printed = content.finished(*WORDS, cwd=folder)
    assert code == 0, printed


def assert_equal(folder: Path, undisturbed_loop: Path) -> None:
    assert weights(folder) == weights(undisturbed_loop)
    assert len(weights(folder)) == 3
    for number in (1, 2):
        assert record(folder, number) == record(undisturbed_loop, number)
    after, expected = store_content(folder), store_content(undisturbed_loop)
    for table, rows in expected.items():
        assert after[table] == rows, table
    assert check(store_of(folder)) == []
    cards = [(each / "loop" / "result" / "README.md").read_text() for each in (folder, undisturbed_loop)]
    assert cards[0].count("Against `") == cards[1].count("Against `") >= 1  # no evaluation is listed twice
    for image in (undisturbed_loop / "loop" / "report-images").iterdir():
        assert digest(folder / "loop" / "report-images" / image.name) == digest(image)
    # killed after the last file of a result was moved: its temporary folder is empty
    assert [path for path in (folder / "loop").rglob("*.tmp/*") if path.is_file()] == []


@pytest.mark.slow(reason="kills processes and goes on from there")
def test_a_loop_survives_signals_and_a_kill_in_each_of_its_stages(empty_loop: Path, undisturbed_loop: Path):
    for number, code, place in (
        (signal.SIGTERM, 143, "store/pairs.duckdb"),
        (signal.SIGINT, 130, "round-1/.run/run.json"),
    ):
        ended, printed = signalled(number, (empty_loop / "loop" / place).exists, *WORDS, cwd=empty_loop)
        assert ended == code, printed
        assert "Traceback" not in printed
        last = printed.strip().splitlines()[-1]
        assert last.startswith("prefloop: interrupted: ")
        assert "the same command " in last
    query = "select count(*) from runs where kind = 'round' and status = 'interrupted'"
    assert store_of(empty_loop).rows(query) == [(2,)]
    storm(empty_loop, EVERYDAY)
    assert_equal(empty_loop, undisturbed_loop)


@pytest.mark.slow(reason="kills a process at each of 29 places; each has to find out how far the one before it came")
def test_a_loop_survives_a_storm_of_kills(empty_loop: Path, undisturbed_loop: Path):
    storm(empty_loop, THOROUGH)
    assert_equal(empty_loop, undisturbed_loop)
