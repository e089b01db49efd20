"""Evaluation through the real code, on a tiny pipeline against a copy with other weights."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from prefloop.eval import EvalConfig
from prefloop.eval.run import evaluate
from prefloop.store import PairStore, UsageError
from prefloop.store.models import RESULT_FILE
from safetensors.torch import load_file, save_file


@pytest.fixture
def tuned(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """The tiny pipeline with a decoder that paints redder: `little_scorers:Redness` prefers it."""
    folder = tmp_path / "tuned"
    shutil.copytree(tiny_pipeline, folder)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["decoder.conv_out.bias"] += torch.tensor([0.6, -0.3, -0.3])
    save_file(state, path)
    result = {"labels": ["redness"], "labelers": {"redness": {"scorers": ["redness@1"]}}}
    (folder / RESULT_FILE).write_text(json.dumps(result))
    return folder


@pytest.fixture
def config(tiny_pipeline: Path, tuned: Path, tmp_path: Path) -> EvalConfig:
    prompts = tmp_path / "prompts.csv"
    rows = [f'prompt {n} <b>&""x,{"even" if n % 2 == 0 else "odd"}' for n in range(6)]
    prompts.write_text("prompt,parity\n" + "\n".join(f'"{r.split(",")[0]}",{r.split(",")[1]}' for r in rows) + "\n")
    return EvalConfig(
        model=str(tuned),
        against=str(tiny_pipeline),
        prompts=str(prompts),
        scorers=("little_scorers:Redness",),
        images_per_prompt=2,
        num_inference_steps=2,
        n_resamples=500,
        report=str(tmp_path / "report"),
    )


def test_the_redder_model_wins_by_redness(store: PairStore, config: EvalConfig):
    result = evaluate(config, store)
    (row,) = result["scorers"].values()
    assert (result["n_prompts"], result["n_pairs"]) == (6, 12)
    assert row["win_rate"] == 1.0
    assert row["diff"] > 0
    assert row["diff_low"] > 0
    assert row["low"] > 0.5
    assert row["in_sample"] is True
    assert set(result["tags"]["parity"]) == {"even", "odd"}
    # both orders folded, the store says the same
    ((n, rate),) = store.rows(
        "select n, case when model = ? then win_rate else 1 - win_rate end from win_rates", [config.model]
    )
    assert (n, rate) == (12, 1.0)


def test_both_models_draw_from_the_same_noise(
    store: PairStore, config: EvalConfig, tiny_pipeline: Path, tmp_path: Path
):
    same = tmp_path / "same"
    shutil.copytree(tiny_pipeline, same)
    (same / "note.json").write_text("{}")  # another model id, the same weights
    result = evaluate(EvalConfig(**{**vars(config), "model": str(same)}), store)
    (row,) = result["scorers"].values()
    assert row["ties"] == result["n_pairs"]
    assert (row["win_rate"], row["diff"]) == (0.5, 0.0)


def test_a_second_call_draws_and_scores_nothing(store: PairStore, config: EvalConfig):
    first = evaluate(config, store)
    counts = store.rows(
        "select (select count(*) from generations), (select count(*) from scores), (select count(*) from labels)"
    )
    assert evaluate(config, store) == first
    assert (
        store.rows(
            "select (select count(*) from generations), (select count(*) from scores), (select count(*) from labels)"
        )
        == counts
    )


def test_the_report_opens_from_disk_and_shows_prompts_as_text(store: PairStore, config: EvalConfig):
    evaluate(config, store)
    folder = Path(config.report or "")
    page = (folder / "report.html").read_text()
    assert "<b>&" not in page
    assert "&lt;b&gt;" in page
    assert "in-sample" in page
    pictures = set(re.findall(r'src="([^"]+)"', page))
    assert len(pictures) > 3
    assert all((folder / name).is_file() for name in pictures)
    assert json.loads((folder / "results.json").read_text())["n_pairs"] == 12


def test_evaluation_pairs_are_no_training_pairs(store: PairStore, config: EvalConfig):
    evaluate(config, store)
    assert store.rows("select distinct source from pairs") == [("eval",)]
    assert store.rows("select distinct labeler from labels")[0][0].startswith("eval:")


def test_a_model_is_not_compared_with_itself(store: PairStore, config: EvalConfig):
    with pytest.raises(UsageError, match="the same model"):
        evaluate(EvalConfig(**{**vars(config), "model": config.against}), store)


def test_the_oracle_may_judge_but_only_prompts_it_can_read(store: PairStore, config: EvalConfig):
    with pytest.raises(ValueError, match="no shape of the built-in world"):
        evaluate(EvalConfig(**{**vars(config), "scorers": ("oracle",)}), store)
