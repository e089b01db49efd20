"""The checkpoints of a run as models, which one is the best, and where it is kept."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import content
import pytest
import torch
from conftest import train_config
from prefloop.cli import app
from prefloop.core.hashing import RESULT_FILE
from prefloop.eval import EvalConfig
from prefloop.eval.stage import report_again, run_evaluation
from prefloop.eval.sweep import checkpoints_of
from prefloop.models.loading import load_component
from prefloop.models.resolve import find_model
from prefloop.models.trained_prompts import read_trained_prompts
from prefloop.store import IntegrityError, PairStore, UsageError
from prefloop.train import TrainConfig
from prefloop.train.export.write_card import write_card
from prefloop.train.stage import train
from typer.testing import CliRunner

STEPS = {
    "lr_scheduler": "constant",
    "train_batch_size": 2,
    "checkpointing_steps": 1,
    "checkpoints_total_limit": 9,
}


def state(model: Path) -> dict[str, torch.Tensor]:
    return load_component(find_model(str(model))).state_dict()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow(reason="generates and judges images")
@pytest.mark.parametrize("kind", [{"lora_rank": 2}, {"lora_rank": 0}, {"lora_rank": 0, "format": "unet"}])
def test_a_checkpoint_has_the_weights_that_a_run_of_as_many_steps_ends_with(
    labelled: PairStore, config: TrainConfig, tmp_path: Path, kind: dict[str, Any]
):
    long, short = (
        replace(config, **kind, **STEPS, max_train_steps=steps, output_dir=str(tmp_path / f"run-{steps}"))
        for steps in (3, 2)
    )
    for each in (long, short):
        train(each, labelled)
    checkpoint = Path(long.output_dir) / "checkpoint-2"
    assert same(state(checkpoint), state(Path(short.output_dir)))
    assert not same(state(checkpoint), state(Path(long.output_dir)))
    model, result = find_model(str(checkpoint)), find_model(long.output_dir)
    assert model.trained_on is not None
    assert result.trained_on is not None
    assert model.trained_on.model_id == result.trained_on.model_id
    assert len({model.model_id, result.model_id, find_model(f"{long.output_dir}/checkpoint-1").model_id}) == 3
    assert (model.trained_with or {})["steps"] == 2
    assert (model.trained_with or {})["labelers"] == (result.trained_with or {})["labelers"]


@pytest.fixture(scope="module")
def _run(tiny_pipeline: Path, _labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    store = PairStore(shutil.copytree(_labelled, folder / "store"))
    config = train_config(tiny_pipeline, folder)
    train(replace(config, lora_rank=2, learning_rate=5e-2, max_train_steps=4, **STEPS), store)
    return folder


@pytest.fixture
def run(_run: Path, labelled: PairStore, config: TrainConfig) -> Path:
    """A finished run of four steps with all of its checkpoints, trained once and copied; the store knows of it."""
    shutil.copytree(_run / "store", labelled.path, dirs_exist_ok=True)
    return Path(shutil.copytree(_run / "tuned", config.output_dir))


@pytest.fixture
def sweep(run: Path, tmp_path: Path) -> EvalConfig:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"scene {n}\n" for n in range(20)))
    scorers = ("little_scorers:Redness", "little_scorers:Darkness")
    return EvalConfig(sweep=str(run), prompts=str(prompts), scorers=scorers, num_inference_steps=1, n_resamples=200)


@pytest.mark.slow(reason="starts a process")
def test_a_run_in_which_the_best_cannot_be_kept_is_refused_before_anything_is_generated(
    sweep: EvalConfig, labelled: PairStore
):
    words = ["--sweep", sweep.sweep, "--prompts", sweep.prompts, "--scorer", sweep.scorers[0], "--device", "cpu"]
    before = labelled.rows("select count(*) from generations")
    ended = content.finished_on_read_only_media(
        Path(sweep.sweep or ""), "eval", *words, "--num-inference-steps", 1, "--store", labelled.path
    )
    assert ended.stderr.splitlines() == [f"prefloop: cannot write {sweep.sweep}: Read-only file system"]
    assert ended.returncode == 1
    assert PairStore.open(labelled.path).rows("select count(*) from generations") == before


@pytest.mark.slow(reason="generates and judges images")
def test_a_changed_checkpoint_is_refused(run: Path):
    weights = run / "checkpoint-2" / "pytorch_lora_weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(
        IntegrityError, match=r"checkpoint-2/pytorch_lora_weights.safetensors has changed since train wrote it"
    ):
        find_model(str(run / "checkpoint-2"))


@pytest.mark.parametrize(
    "text", ["", "[]", '{"step": "2", "files": {}}', '{"step": 2, "files": {"a": 1}}', "[" * 10**5]
)
def test_a_forged_manifest_is_refused_in_one_line(run: Path, text: str):
    (run / "checkpoint-2" / "MANIFEST.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"MANIFEST.json is not what train writes"):
        find_model(str(run / "checkpoint-2"))


@pytest.mark.slow(reason="generates and judges images")
def test_a_sweep_evaluates_every_checkpoint_and_keeps_the_best(
    labelled: PairStore, sweep: EvalConfig, run: Path, tiny_pipeline: Path
):
    before = find_model(str(run)).model_id
    _, result = run_evaluation(sweep, labelled)
    compared = [result, *result["other_comparisons"]]
    expected = {str(run / f"checkpoint-{step}"): step for step in (1, 2, 3)} | {str(run): 4}
    assert [c["model"] for c in compared] == list(expected)
    assert {c["baseline"] for c in compared} == {str(tiny_pipeline)}
    assert result["sweep"]["steps"] == expected
    # the baseline's images and each checkpoint's, once
    query = "select count(*) from evaluation_images where evaluation_id = $1"
    assert labelled.rows(query, [result["evaluation_id"]]) == [(5 * 20,)]
    # the labels that trained it were made by hand, so both scorers are independent: on the choosing half no other is better
    chosen = result["sweep"]
    assert chosen["chosen_by"] == ["redness", "darkness"]
    assert {row["n_prompts"] for row in chosen["reported"].values()} == {10}
    best = run / "checkpoint-best"
    assert same(state(best), state(Path(chosen["best"])))
    record = json.loads((best / RESULT_FILE).read_text())
    assert record["steps"] == chosen["best_step"]
    assert record["files"].keys() == {"pytorch_lora_weights.safetensors"}
    ((of_best, rows),) = ((c["model"], c["scorers"]) for c in compared if c["model"] == chosen["best"])
    card = (best / "README.md").read_text()
    for name, row in rows.items():
        assert f"| `{name}` | {100 * row['win_rate']:.1f} % |" in card
    assert write_card(run, labelled) == 1
    card = (run / "README.md").read_text()
    assert f"| `redness` | {100 * compared[-1]['scorers']['redness']['win_rate']:.1f} % |" in card
    assert ("`checkpoint-best` in this folder" in card) == (of_best != str(run))
    assert read_trained_prompts(best) == read_trained_prompts(run)
    assert find_model(str(run)).model_id == before
    assert str(find_model(str(best)).trained_on) == str(find_model(str(run)).trained_on)
    page = (Path(result["report"]) / "report.html").read_text()
    assert f"The best checkpoint is that of step {chosen['best_step']}" in page
    assert run_evaluation(sweep, labelled)[1] == result  # again, over the folder that it wrote
    _, again = report_again(result["name"], None, labelled)
    assert again["sweep"] == chosen


@pytest.mark.slow(reason="generates and judges images")
def test_the_best_is_chosen_on_one_half_and_reported_on_the_other(labelled: PairStore, sweep: EvalConfig):
    evaluation, result = run_evaluation(replace(sweep, scorers=("little_scorers:Redness",)), labelled)
    from prefloop.eval.best import choosing, judged_prompts

    rates = []
    for compared in evaluation.comparisons:
        judged = judged_prompts(compared.pairs)
        half = {each.prompt for each in choosing(judged)}
        assert len(half) == 10
        rates.append(
            tuple(
                sum(each.scorers["redness"][0] for each in judged if (each.prompt in half) == chosen) / 10
                for chosen in (True, False)
            )
        )
    first = max(range(4), key=lambda number: rates[number][0])
    assert result["sweep"]["best_step"] == first + 1
    assert result["sweep"]["chosen_with"] == pytest.approx(rates[first][0])
    assert result["sweep"]["reported"]["redness"]["win_rate"]["value"] == pytest.approx(rates[first][1])


def test_a_sweep_without_checkpoints_or_of_no_run_is_refused(run: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="holds no finished training run; --sweep takes the --output-dir of one"):
        checkpoints_of(tmp_path / "nothing")
    for step in (1, 2, 3):
        shutil.rmtree(run / f"checkpoint-{step}")
    with pytest.raises(UsageError, match="has no checkpoint before its last step; train with a smaller"):
        checkpoints_of(run)


@pytest.mark.slow(reason="generates and judges images")
def test_a_best_checkpoint_is_not_written_over_files_of_others(labelled: PairStore, sweep: EvalConfig, run: Path):
    (run / "checkpoint-best").mkdir()
    (run / "checkpoint-best" / "pytorch_lora_weights.safetensors").write_text("mine")
    with pytest.raises(UsageError, match="was not written by train, or has changed; move it away"):
        run_evaluation(sweep, labelled)
    assert (run / "checkpoint-best" / "pytorch_lora_weights.safetensors").read_text() == "mine"


@pytest.mark.slow(reason="generates and judges images")
def test_the_command_prints_a_line_for_each_checkpoint(labelled: PairStore, sweep: EvalConfig, run: Path):
    words = ["eval", "--sweep", str(run), "--prompts", str(sweep.prompts), "--num-inference-steps", "1"]
    words += ["--scorer", "little_scorers:Redness", "--store", str(labelled.path)]
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["1", "2", "3", "4"]
    assert lines[-1] == f"it is in {run}/checkpoint-best: prefloop generate --model {run}/checkpoint-best"
    generated = CliRunner().invoke(
        app, ["generate", "--model", str(run), *words[3:5], "--dry-run", "--store", str(labelled.path)]
    )
    earlier = not lines[-3].startswith("The best checkpoint is that of step 4")
    assert (f"a sweep found a better checkpoint of {run}: --model {run}/checkpoint-best" in generated.stderr) == earlier
    refused = CliRunner().invoke(app, [*words, "--model", str(run)])
    assert refused.exit_code == 2
    assert "--sweep evaluates the checkpoints of one run; leave out --model" in refused.stderr
