"""`prefloop demo` is one round of the loop, and a second call does nothing twice."""

import json
import os
from pathlib import Path

import content
import pytest
from prefloop.loop.settings_file import claimed, write_settings
from prefloop.models.lineage import read_result
from prefloop.shapes.demo import DemoConfig, demo_settings
from prefloop.store import PairStore


def _progress_in_a_file() -> None:
    os.dup2(os.open("progress", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)


def demo(folder: Path, *options: str) -> str:
    """All that the quick demo's command prints on stdout."""
    code, printed = content.finished("demo", "--quick", *options, cwd=folder, timeout=600, first=_progress_in_a_file)
    assert code == 0, (folder / "progress").read_text()[-2000:]
    return printed


def test_every_model_seed_and_size_has_a_folder_of_its_own():
    assert DemoConfig().folder == "prefloop-demo"
    assert DemoConfig(seed=3).folder == "prefloop-demo-seed-3"
    assert DemoConfig(model="shapes-flow", seed=2, quick=True).folder == "prefloop-demo-flow-seed-2-quick"
    assert DemoConfig(output_dir="here", model="shapes-flow", seed=2, quick=True).folder == "here"


def test_demo_trains_on_clear_pairs_and_evaluates_with_other_noise():
    settings = demo_settings(DemoConfig(seed=2))
    assert settings.loop.rounds == 1
    generation = settings.generate_config(1)
    assert (generation.model, generation.seed, generation.limit, generation.images_per_prompt) == ("shapes", 2, 350, 4)
    training = settings.train_config(1, "pickscore@shapes")
    assert (training.where, training.seed) == ("round = 1 and margin > 3.0", 2)
    assert settings.loop.prompts_per_round is None  # in the order of the file, which a choice would change
    evaluation = settings.eval_config(1, "shapes")
    assert (evaluation.seed, evaluation.limit, evaluation.images_per_prompt) == (1_000_002, None, 2)


@pytest.mark.slow(reason="runs the built-in models")
def test_a_folder_that_the_demo_of_an_earlier_version_made_is_refused_and_left_as_it_is(tmp_path: Path):
    for name in ("store", "tuned-0", "report-0"):
        (tmp_path / "prefloop-demo" / name).mkdir(parents=True)
    message = "prefloop: prefloop-demo is not empty and holds no loop; name another folder with --output-dir\n"
    assert refused(tmp_path) == message
    assert {path.name for path in (tmp_path / "prefloop-demo").iterdir()} == {"store", "tuned-0", "report-0"}


@pytest.mark.slow(reason="runs the built-in models")
def test_a_folder_with_the_demo_of_another_seed_is_refused_with_what_differs(tmp_path: Path):
    settings = demo_settings(DemoConfig(seed=1, output_dir=str(tmp_path / "here")))
    with claimed(settings):
        write_settings(settings)
    kept = (tmp_path / "here" / "loop.json").read_text()
    message = refused(tmp_path, "--output-dir", "here")
    assert message.startswith("prefloop: here holds a loop with other settings: loop.seed was 1 and is 0")
    assert message.endswith("; use those, or name another folder with --output-dir\n")
    assert (tmp_path / "here" / "loop.json").read_text() == kept


def refused(folder: Path, *options: str) -> str:
    """What the demo prints on stderr when it refuses its settings."""
    code, printed = content.finished("demo", *options, cwd=folder, first=_progress_in_a_file)
    assert (code, printed) == (2, "")
    return (folder / "progress").read_text()


@pytest.mark.slow(reason="runs the four stages as a user does")
def test_quick_demo_ends_with_a_model_and_reports_and_can_be_called_again(tmp_path: Path):
    printed = demo(tmp_path, "--json")
    result = json.loads(printed)
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
    folder = tmp_path / "prefloop-demo-quick"
    assert (folder / "report.html").exists()
    kept = read_result(folder / "result")
    assert kept is not None
    assert kept["trained_on"]["built_in"] == "shapes"
    store = PairStore.open(folder / "store")
    tables = ("generations", "scores", "labels", "runs")
    counts = f"select {', '.join(f'(select count(*) from {table})' for table in tables)}"
    before = store.rows(counts)
    # 16 prompts with two images and 8 evaluation prompts with one of each model; the round's run beside those of its stages
    assert (before[0][0], before[0][3]) == (48, 5)
    weights = (folder / "result" / "pytorch_lora_weights.safetensors").stat()
    assert demo(tmp_path, "--json") == printed
    assert store.rows(counts) == before
    assert (folder / "result" / "pytorch_lora_weights.safetensors").stat().st_mtime_ns == weights.st_mtime_ns
    table = demo(tmp_path).splitlines()
    assert [line.split()[0] for line in table[2:7]] == list(result["scorers"])
    assert table[-2:] == [
        "report: prefloop-demo-quick/reports/round-1-against-base/report.html",
        "the model is in prefloop-demo-quick/result; report of the loop: prefloop-demo-quick/report.html",
    ]
    said = (tmp_path / "progress").read_text()
    assert said.splitlines()[-1] == "next: prefloop browse --store prefloop-demo-quick/store"


@pytest.mark.slow(reason="runs the four stages as a user does")
def test_quick_demo_of_the_flow_model_is_a_loop_of_its_own(tmp_path: Path):
    result = json.loads(demo(tmp_path, "--json", "--model", "shapes-flow"))
    assert (tmp_path / result["report"] / "report.html").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"prefloop-demo-flow-quick", "progress"}
    folder = tmp_path / "prefloop-demo-flow-quick"
    trained = json.loads((folder / "result" / "prefloop.json").read_text())
    assert (trained["family"], trained["trained_on"]["built_in"]) == ("sd3", "shapes-flow")
    # its transformer has no room for T5's tokens, so plain diffusers must leave them out too
    assert "text_encoder_3=None" in (folder / "result" / "README.md").read_text()
    assert "max_sequence_length=0" in (folder / "result" / "README.md").read_text()
