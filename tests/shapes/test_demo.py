"""`prefloop demo --quick` runs all stages, and a second call does nothing twice."""

import json
import os
from pathlib import Path

import content
import pytest
from prefloop.store import PairStore


def _progress_in_a_file() -> None:
    os.dup2(os.open("progress", os.O_WRONLY | os.O_CREAT), 2)


def demo(folder: Path) -> dict:
    """The quick demo's result: all that its command prints on stdout."""
    code, printed = content.finished("demo", "--quick", "--json", cwd=folder, timeout=600, first=_progress_in_a_file)
    assert code == 0, (folder / "progress").read_text()[-2000:]
    return json.loads(printed)


@pytest.mark.slow  # four stages as a user runs them
def test_quick_demo_ends_with_a_report_and_can_be_called_again(tmp_path: Path):
    result = demo(tmp_path)
    assert {"n_prompts", "n_pairs", "report", "scorers"} <= result.keys()
    assert set(result["scorers"]) == {"oracle", "hps", "clip", "pickscore", "aesthetics"}
    keys = {
        "win_rate",
        "win_rate_low",
        "win_rate_high",
        "base_mean",
        "tuned_mean",
        "diff",
        "diff_low",
        "diff_high",
        "in_sample",
    }
    assert all(keys <= row.keys() for row in result["scorers"].values())
    assert [name for name, row in result["scorers"].items() if row["in_sample"]] == ["pickscore"]
    assert (tmp_path / result["report"] / "report.html").exists()
    store = PairStore.open(tmp_path / "prefloop-demo" / "store")
    before = store.rows(
        "select (select count(*) from generations), (select count(*) from scores), (select count(*) from labels)"
    )
    assert demo(tmp_path) == result
    assert (
        store.rows(
            "select (select count(*) from generations), (select count(*) from scores), (select count(*) from labels)"
        )
        == before
    )


@pytest.mark.slow  # four stages as a user runs them
def test_quick_demo_of_the_flow_model_keeps_a_store_and_a_report_of_its_own(tmp_path: Path):
    code, printed = content.finished(
        "demo", "--quick", "--json", "--model", "shapes-flow", cwd=tmp_path, timeout=600, first=_progress_in_a_file
    )
    assert code == 0, (tmp_path / "progress").read_text()[-2000:]
    result = json.loads(printed)
    assert (tmp_path / result["report"] / "report.html").exists()
    folder = tmp_path / "prefloop-demo"
    assert sorted(path.name for path in folder.iterdir()) == ["report-0-flow-quick", "store-flow", "tuned-0-flow-quick"]
    trained = json.loads((folder / "tuned-0-flow-quick" / "prefloop.json").read_text())
    assert (trained["family"], trained["trained_on"]["built_in"]) == ("sd3", "shapes-flow")
    # its transformer has no room for T5's tokens, so plain diffusers must leave them out too
    assert "text_encoder_3=None" in (folder / "tuned-0-flow-quick" / "README.md").read_text()
    assert "max_sequence_length=0" in (folder / "tuned-0-flow-quick" / "README.md").read_text()
