"""`prefloop demo --quick` runs all stages, and a second call does nothing twice."""

import json
from pathlib import Path

import content
import pytest
from prefloop.store import PairStore


@pytest.mark.slow  # four stages as a user runs them, about a minute
def test_quick_demo_ends_with_a_report_and_can_be_called_again(tmp_path: Path):
    first = content.prefloop("demo", "--quick", "--json", cwd=tmp_path, timeout=600)
    assert first.returncode == 0, first.stderr[-2000:]
    result = json.loads(first.stdout)
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
    code, printed = content.finished("demo", "--quick", "--json", cwd=tmp_path, timeout=600)
    assert code == 0, printed[-2000:]
    assert json.loads(printed[printed.index("{\n") if "{\n" in printed else printed.index("{") :]) == result
    assert (
        store.rows(
            "select (select count(*) from generations), (select count(*) from scores), (select count(*) from labels)"
        )
        == before
    )
