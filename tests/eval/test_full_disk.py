"""A report that does not fit on the disk is named, and the same command writes it once there is room."""

from dataclasses import replace
from pathlib import Path

import content
import pytest
from prefloop.core.errors import WriteError
from prefloop.core.files import refuse_report_over_others
from prefloop.eval import EvalConfig
from prefloop.eval.report import FILES, PAGE, write_report
from prefloop.eval.stage import report_again, run_evaluation
from prefloop.store import PairStore


@pytest.mark.slow(reason="generates and judges images")
def test_half_a_page_is_not_left_behind(store: PairStore, tiny_pipeline: Path, lora: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    config = EvalConfig(
        models=(str(lora),),
        baseline=str(tiny_pipeline),
        prompts=str(tmp_path / "prompts.txt"),
        scorers=("little_scorers:Redness",),
        num_inference_steps=1,
        n_resamples=10,
    )
    evaluation, result = run_evaluation(config, store)
    report = tmp_path / "report"
    with content.no_file_beyond(1000), pytest.raises(WriteError, match=r"cannot write .*report\.html \(\d+ bytes\)"):
        write_report(evaluation, result, store, report)
    assert [path.name for path in report.iterdir()] == ["images"]
    refuse_report_over_others(report, PAGE, *FILES)
    # the page fits, and the plots do not
    size = 4096 + (store.path / "reports" / result["name"] / PAGE).stat().st_size
    with content.no_file_beyond(size), pytest.raises(WriteError, match=r"cannot write .*report: File too large"):
        write_report(replace(evaluation, config=replace(config, output_dir=str(report))), result, store, report)
    again = report_again(result["name"], str(report), store)[1]
    assert again["scorers"] == result["scorers"]
    assert {PAGE, *FILES} <= {path.name for path in report.iterdir()}
