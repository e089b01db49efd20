"""Evaluation through the real code, on a tiny pipeline against a copy with other weights."""

import base64
import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import content
import pytest
import torch
from chat_server import ChatServer
from PIL import Image
from prefloop.cli import app
from prefloop.core.errors import WriteError
from prefloop.core.hashing import RESULT_FILE
from prefloop.eval import EvalConfig
from prefloop.eval.cli import table
from prefloop.eval.result import ImagePair, count_trained_prompts, training_scorers
from prefloop.eval.stage import evaluate
from prefloop.generate import read_prompts
from prefloop.models.resolve import find_model
from prefloop.models.trained_prompts import FILE, write_trained_prompts
from prefloop.relabel.judges.chat import BudgetSpent
from prefloop.store import PairStore, PrefloopError, UsageError, prompt_id
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner


@pytest.fixture
def tuned(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """The tiny pipeline with a decoder that paints redder: `little_scorers:Redness` prefers it."""
    folder = tmp_path / "tuned"
    shutil.copytree(tiny_pipeline, folder)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["decoder.conv_out.bias"] += torch.tensor([0.6, -0.3, -0.3])
    save_file(state, path)
    result = {"labelers": {"redness": {"scorers": ["redness@1"]}}}
    result |= {"base_model": str(tiny_pipeline)}
    (folder / RESULT_FILE).write_text(json.dumps(result))
    return folder


@pytest.fixture
def config(tiny_pipeline: Path, tuned: Path, tmp_path: Path) -> EvalConfig:
    prompts = tmp_path / "prompts.csv"
    rows = [f'prompt {n} <b>&""x,{"even" if n % 2 == 0 else "odd"}' for n in range(10)]
    prompts.write_text("prompt,parity\n" + "\n".join(f'"{r.split(",")[0]}",{r.split(",")[1]}' for r in rows) + "\n")
    return EvalConfig(
        models=(str(tuned),),
        baseline=str(tiny_pipeline),
        prompts=str(prompts),
        scorers=("little_scorers:Redness",),
        images_per_prompt=2,
        num_inference_steps=2,
        n_resamples=500,
        output_dir=str(tmp_path / "report"),
    )


def test_the_redder_model_wins_by_redness(store: PairStore, config: EvalConfig):
    result = evaluate(config, store)
    (row,) = result["scorers"].values()
    assert (result["n_prompts"], result["n_pairs"]) == (10, 20)
    assert row["win_rate"] == 1.0
    assert row["diff"] > 0
    assert row["diff_low"] > 0
    assert row["win_rate_low"] == pytest.approx(10 / (10 + 1.96**2), abs=1e-4)  # Wilson's of 10 of 10 prompts
    assert row["in_sample"] is True
    assert set(result["tags"]["parity"]) == {"even", "odd"}
    # both orders folded, the store says the same
    ((n, rate),) = store.rows(
        "select n, case when model = ? then win_rate else 1 - win_rate end from win_rates", [config.models[0]]
    )
    assert (n, rate) == (20, 1.0)


@pytest.mark.slow(reason="starts processes")
def test_a_judge_behind_an_endpoint_evaluates_within_its_budget(store: PairStore, config: EvalConfig, tmp_path: Path):
    server = ChatServer()  # says how red an image is
    template = tmp_path / "redness.toml"
    template.write_text("""
        kind = "point"
        prompt = "{image}How red is it? {prompt}"
        [answer]
        numbers = ['Score: (\\d+)']
        scale = [0, 255]
    """)
    scorer = f"vlm:{template}"
    judged = replace(config, scorers=(scorer,), checkpoints={scorer: f"{server.url}#m"}, limit=2, max_requests=5)
    with pytest.raises(BudgetSpent):
        evaluate(judged, store)
    assert len(server.asked) == 5
    result = evaluate(judged, store)
    server.close()
    assert result["usage"] == {"vlm:redness": {"requests": 3}}
    assert len(server.asked) == 8  # two models, two prompts, two images of each
    assert result["scorers"]["vlm:redness"]["win_rate"] == 1.0
    assert store.rows("select count(*) from answers") == [(8,)]


@pytest.mark.slow(reason="generates and judges images")
def test_both_models_start_from_the_same_noise(
    store: PairStore, config: EvalConfig, tiny_pipeline: Path, tmp_path: Path
):
    same = tmp_path / "same"
    shutil.copytree(tiny_pipeline, same)
    (same / "note.json").write_text("{}")  # another model id, the same weights
    result = evaluate(EvalConfig(**{**vars(config), "models": (str(same),)}), store)
    (row,) = result["scorers"].values()
    assert row["ties"] == result["n_pairs"]
    assert (row["win_rate"], row["diff"]) == (0.5, 0.0)
    assert (row["diff_low"], row["diff_high"]) == (None, None)  # a width of zero is not an interval
    line = table(result).splitlines()[2]
    assert "  23.7 – 76.3 %  " in line  # Wilson's of ten prompts that all tie
    assert line.endswith("+0.0000  –  no interval: the same for every prompt")


@pytest.mark.slow(reason="generates and judges images")
def test_a_second_call_generates_and_scores_nothing(store: PairStore, config: EvalConfig):
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


@pytest.mark.slow(reason="generates and judges images")
def test_the_report_opens_from_disk_and_shows_prompts_as_text(store: PairStore, config: EvalConfig):
    evaluate(config, store)
    folder = Path(config.output_dir or "")
    page = (folder / "report.html").read_text()
    assert "<b>&" not in page
    assert "&lt;b&gt;" in page
    assert "in-sample" in page
    images = set(re.findall(r'src="([^"]+)"', page))
    assert len(images) > 3
    assert all((folder / name).is_file() for name in images)
    # in the dark another plot of the same size
    (dark,) = re.findall(r'<source srcset="([^"]+)" media="\(prefers-color-scheme: dark\)">', page)
    light_plot, dark_plot = (Image.open(folder / name).convert("L") for name in ("win_rates.png", dark))
    assert light_plot.size == dark_plot.size
    assert light_plot.getpixel((0, 0)) == 255
    assert dark_plot.getpixel((0, 0)) < 40  # type: ignore[operator]  # gray is one number
    # the policy allows this script alone
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    # the tuned model is the redder one, and its image, the second, is marked; no pair is a tie
    first = re.findall(r'<div class="views">(.*?)</figure>', page, re.S)[0]
    assert re.findall(r'<b class="yes">✓ better</b>|<span class="name">(.*?)</span>', first) == [
        Path(config.baseline or "").name,
        "",
        "tuned",
    ]
    assert 'class="tie"' not in page
    assert f"<title>tuned compared with {Path(config.baseline or '').name}</title>" in page
    assert json.loads((folder / "results.json").read_text())["n_pairs"] == 20


@pytest.mark.slow(reason="generates and judges images")
def test_too_few_prompts_have_a_win_rate_and_words_instead_of_an_interval(store: PairStore, config: EvalConfig):
    result = evaluate(replace(config, limit=3), store)
    (row,) = result["scorers"].values()
    assert row["win_rate"] == 1.0
    assert {row[name] for name in ("win_rate_low", "win_rate_high", "diff_low", "diff_high")} == {None}
    line = table(result).splitlines()[2]
    assert line.startswith("redness       100.0 %  –  ")
    assert line.endswith("no interval: 3 prompts, at least 10 are needed")
    folder = Path(config.output_dir or "")
    assert json.loads((folder / "results.json").read_text()) == result
    page = " ".join((folder / "report.html").read_text().split())
    assert "there are none here, because they need at least 10 prompts" in page
    assert '<span class="dim" title="no interval: 3 prompts, at least 10 are needed">none</span>' in page
    assert "nan" not in page
    assert (folder / "win_rates.png").stat().st_size > 1000


@pytest.mark.slow(reason="generates and judges images")
def test_evaluation_pairs_are_not_training_pairs(store: PairStore, config: EvalConfig):
    evaluate(config, store)
    assert store.rows("select distinct source from pairs") == [("eval",)]
    assert store.rows("select distinct labeler from labels")[0][0].startswith("eval:")


def test_a_model_is_not_compared_with_itself(store: PairStore, config: EvalConfig):
    with pytest.raises(UsageError, match="the same model"):
        evaluate(EvalConfig(**{**vars(config), "models": (config.baseline,)}), store)


@pytest.mark.slow(reason="generates and judges images")
def test_the_prompts_that_count_as_trained_on_are_those_of_the_run(store: PairStore, config: EvalConfig):
    prompts = [prompt.text for prompt in read_prompts(config.prompts or "")]
    # the labeler decided all six; the run used one of them, as the file beside its weights says
    content.add_labeler(store, "redness")
    for number, prompt in enumerate(prompts):
        dull, red = (content.add_image(store, (value, number, 0)) for value in (10, 200))
        pair = content.add_pair(store, content.add_prompt(store, prompt), dull, red)
        content.add_label(store, pair, "redness", "a")
    store.ingest()
    write_trained_prompts(Path(config.models[0]), [prompt_id(prompts[0]), prompt_id("of another evaluation")])
    result = evaluate(config, store)
    assert result["n_trained_prompts"] == 1
    page = " ".join((Path(config.output_dir or "") / "report.html").read_text().split())
    assert "<strong>the tuned model was trained on 1 of these prompts</strong>" in page[: page.index("<table>")]
    headline = table(result).splitlines()[0]
    assert "20 pairs for 10 prompts of" in headline
    assert "1 of them trained on" in headline
    assert "none of them trained on" in table(result | {"n_trained_prompts": 0}).splitlines()[0]
    assert "which of them were trained on is not known" in table(result | {"n_trained_prompts": None}).splitlines()[0]


def test_trained_prompts_are_counted_along_the_chain_and_unknown_is_not_none(tuned: Path, tmp_path: Path):
    image = UUID(int=1)
    pairs = [ImagePair(text, {}, 0, image, image, {}) for text in ("one", "one", "two", "three")]
    again = shutil.copytree(tuned, tmp_path / "again")
    (again / "note.json").write_text("{}")  # another model id
    (again / RESULT_FILE).write_text(json.dumps({"base_model": str(tuned)}))
    write_trained_prompts(again, [prompt_id("two")])
    assert count_trained_prompts(find_model(str(again)), pairs) is None  # what the first result saw is not known
    write_trained_prompts(tuned, [prompt_id("one"), prompt_id("elsewhere")])
    assert count_trained_prompts(find_model(str(again)), pairs) == 2
    assert count_trained_prompts(find_model(str(tuned)), pairs) == 1
    write_trained_prompts(tuned, [])
    assert count_trained_prompts(find_model(str(tuned)), pairs) == 0
    (again / RESULT_FILE).unlink()
    assert count_trained_prompts(find_model(str(again)), pairs) is None  # a model from elsewhere
    (tuned / FILE).write_text("prompt_id\nnonsense\n")
    with pytest.raises(PrefloopError, match=FILE):
        count_trained_prompts(find_model(str(tuned)), pairs)


def test_scorers_that_trained_any_model_of_the_chain_are_in_sample(tuned: Path, tmp_path: Path):
    def trained_by(folder: Path, scorer: str) -> None:
        path = folder / RESULT_FILE
        result = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(result | {"labelers": {scorer: {"scorers": [f"{scorer}@1"]}}}))

    trained_by(tuned, "hps")
    again = shutil.copytree(tuned, tmp_path / "again")
    (again / "note.json").write_text("{}")  # another model id
    (again / RESULT_FILE).write_text(json.dumps({"base_model": str(tuned)}))
    trained_by(again, "clip")
    assert training_scorers(find_model(str(again))) == {"hps", "clip"}


@pytest.mark.slow(reason="generates and judges images")
def test_a_group_without_a_finite_score_has_no_result_and_the_others_are_reported(store: PairStore, config: EvalConfig):
    result = evaluate(replace(config, scorers=("little_scorers:Speechless",)), store)
    assert (result["scorers"]["speechless"]["n_pairs"], result["scorers"]["speechless"]["n_excluded"]) == (10, 10)
    assert result["tags"]["parity"]["odd"] == {"speechless": None}
    assert result["tags"]["parity"]["even"]["speechless"]["win_rate"] == 1.0
    page = (Path(config.output_dir or "") / "report.html").read_text()
    assert "no result" in page[page.index("By parity") :]


@pytest.mark.slow(reason="generates and judges images")
def test_a_scorer_without_scores_for_some_pairs_says_on_how_many_it_rests(store: PairStore, config: EvalConfig):
    result = evaluate(config, store)
    row = next(iter(result["scorers"].values()))
    assert "pairs" not in table(result).splitlines()[2]
    row["n_excluded"], row["n_pairs"] = 2, result["n_pairs"] - 2
    assert table(result).splitlines()[2].endswith(f"{result['n_pairs'] - 2} of {result['n_pairs']} pairs")


@pytest.mark.slow(reason="generates and judges images")
def test_a_scorer_without_a_finite_score_is_named_at_the_end_and_the_others_are_reported(
    store: PairStore, config: EvalConfig
):
    words = ["eval", "--model", config.models[0], "--prompts", str(config.prompts), "--num-inference-steps", "2"]
    words += ["--output-dir", str(config.output_dir), "--store", str(store.path)]
    both = ["--scorer", "little_scorers:Redness", "--scorer", "little_scorers:Blank"]
    ended = CliRunner().invoke(app, [*words, *both])
    assert ended.exit_code == 3
    assert ended.stderr.splitlines()[-1].startswith("prefloop: blank gave no finite score")
    assert ended.stdout.splitlines()[2].startswith("redness")
    assert "No result: blank" in (Path(config.output_dir or "") / "report.html").read_text()
    ((status, summary),) = store.rows("select status, summary from runs")
    assert (status, json.loads(summary)["without_result"]) == ("done", ["blank"])
    assert list(json.loads(summary)["scorers"]) == ["redness"]
    alone = CliRunner().invoke(app, [*words, "--scorer", "little_scorers:Blank"])
    assert alone.exit_code == 3
    assert alone.stderr.splitlines()[-1].startswith("prefloop: blank gave no finite score")


def test_the_oracle_evaluates_only_prompts_it_can_read(store: PairStore, config: EvalConfig):
    with pytest.raises(ValueError, match="is not a shape of the built-in world"):
        evaluate(EvalConfig(**{**vars(config), "scorers": ("oracle",)}), store)


@pytest.mark.parametrize("name", ["report.html", "results.json", "samples.png"])
def test_a_report_is_not_written_over_files_of_others(store: PairStore, config: EvalConfig, name: str):
    folder = Path(config.output_dir or "")
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(UsageError, match=f"{name} is not part of a report that prefloop wrote"):
        evaluate(config, store)
    assert (folder / name).read_text() == "mine"
    assert store.rows("select * from generations") == []  # found before anything is generated


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("a\0b", "NUL character"),
        ("file", "is a file; name a folder"),
        ("store", "is a store"),
        ("file/report", "cannot write .*file/report: Not a directory"),
    ],
)
def test_a_folder_that_cannot_hold_a_report_is_refused_before_anything_is_generated(
    store: PairStore, config: EvalConfig, tmp_path: Path, name: str, line: str
):
    (tmp_path / "file").write_text("mine")
    with pytest.raises((UsageError, WriteError), match=line):
        evaluate(replace(config, output_dir=str(tmp_path / name)), store)
    assert store.rows("select * from generations") == []
