"""Several models, and people, compared through the real code on tiny pipelines that paint ever redder."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import content
import pytest
import torch
from prefloop.cli import app
from prefloop.core.hashing import RESULT_FILE
from prefloop.eval import EvalConfig
from prefloop.eval.cli import table
from prefloop.eval.lineup import find_lineup
from prefloop.eval.report import Shown
from prefloop.eval.stage import report_again, run_evaluation
from prefloop.store import PairStore, UsageError
from prefloop.store.check import check
from prefloop.store.query import ask
from prefloop.train.export.card import evaluations_of
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

N_PROMPTS = 12
COUNTS = """select (select count(*) from generations), (select count(*) from scores), (select count(*) from pairs),
    (select count(*) from evaluations)"""


@pytest.fixture
def redder(tiny_pipeline: Path, tmp_path: Path) -> Callable[..., Path]:
    """The tiny pipeline with a decoder that paints redder by so much."""

    def make(name: str, amount: float, trained_on: Path | None = None) -> Path:
        folder = shutil.copytree(tiny_pipeline, tmp_path / name)
        path = folder / "vae" / "diffusion_pytorch_model.safetensors"
        state = load_file(path)
        state["decoder.conv_out.bias"] += torch.tensor([1.0, -0.5, -0.5]) * amount
        save_file(state, path)
        if trained_on is not None:
            result = {"labelers": {"redness": {"scorers": ["redness@1"]}}, "base_model": str(trained_on)}
            (folder / RESULT_FILE).write_text(json.dumps(result))
        return folder

    return make


@pytest.fixture
def config(redder: Callable[..., Path], tiny_pipeline: Path, tmp_path: Path) -> EvalConfig:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text(
        "prompt,half\n" + "".join(f"prompt {n},{('first', 'second')[n % 2]}\n" for n in range(N_PROMPTS))
    )
    first = redder("first", 0.3, tiny_pipeline)
    second = redder("second", 0.6, first)
    return EvalConfig(
        models=(str(second), str(first)),
        prompts=str(prompts),
        scorers=("little_scorers:Redness", "little_scorers:Darkness"),
        num_inference_steps=1,
        n_resamples=500,
    )


def test_the_baseline_of_each_model_is_what_it_was_trained_on(config: EvalConfig, tiny_pipeline: Path):
    models, lineup = find_lineup(config)
    second, first = config.models
    assert lineup.names == [second, first, str(tiny_pipeline)]
    # second against first, first against the base, and what is left
    assert lineup.comparisons == [(0, 1), (1, 2), (0, 2)]
    assert lineup.baselines == {0: 1, 1: 2}
    _, one_baseline = find_lineup(replace(config, baseline=str(tiny_pipeline)))
    assert one_baseline.comparisons == [(0, 2), (1, 2), (0, 1)]
    # the order in which they are named does not decide which is the tuned one
    _, swapped = find_lineup(replace(config, models=(str(tiny_pipeline), second)))
    assert (swapped.names, swapped.comparisons[0]) == ([str(tiny_pipeline), second, first], (1, 2))
    _, two = find_lineup(replace(config, models=(str(tiny_pipeline), first)))
    assert (two.names, two.comparisons) == ([first, str(tiny_pipeline)], [(0, 1)])
    with pytest.raises(UsageError, match="are the same model; name it once"):
        find_lineup(replace(config, models=(first, second, first)))
    assert len(models) == 3


def test_models_of_unknown_origin_are_compared_with_one_another(redder: Callable[..., Path], config: EvalConfig):
    foreign = [str(redder(name, amount)) for name, amount in (("a", 0.1), ("b", 0.2))]
    _, lineup = find_lineup(replace(config, models=tuple(foreign)))
    assert (lineup.names, lineup.comparisons, lineup.baselines) == (foreign, [(0, 1)], {})
    with pytest.raises(UsageError, match=r"was trained on is not known; name the model to compare it with: --baseline"):
        find_lineup(replace(config, models=(foreign[0],)))


@pytest.mark.slow(reason="generates and judges images")
def test_every_image_is_generated_once_and_every_two_models_are_compared(store: PairStore, config: EvalConfig):
    _, result = run_evaluation(config, store)
    images, scores, _, rows = store.rows(COUNTS)[0]
    assert (images, scores, rows) == (3 * N_PROMPTS, 2 * 3 * N_PROMPTS, 3 * N_PROMPTS)
    assert [c["scorers"]["redness"]["win_rate"] for c in (result, *result["other_comparisons"])] == [1.0, 1.0, 1.0]
    assert [c["scorers"]["redness"]["in_sample"] for c in (result, *result["other_comparisons"])] == [True] * 3
    assert {name: len(values) for name, values in result["tags"].items()} == {"half": 2}
    second, first = config.models
    ranks = result["ranks"]["redness"]
    assert [place["model"] for place in ranks[:2]] == [second, first]
    assert [place["groups"] for place in ranks] == ["A", "B", "C"]
    assert {place["low"] for place in ranks} == {None}  # the same for every prompt
    strengths = {place["model"]: place["strength"] for place in result["ranks"]["darkness"]}
    rates = {c["model"]: c["scorers"]["darkness"]["win_rate"] for c in result["other_comparisons"][:1]}
    assert (strengths[first] > strengths[result["other_comparisons"][0]["baseline"]]) == (rates[first] > 0.5)
    assert check(store) == []
    assert run_evaluation(config, store)[1] == result
    assert store.rows(COUNTS)[0][0] == images
    # another baseline is another comparison of the same images
    run_evaluation(replace(config, models=(second,), baseline=first), store)
    assert store.rows(COUNTS)[0][:2] == (images, scores)


@pytest.mark.slow(reason="generates and judges images")
def test_report_json_table_and_sql_have_the_same_numbers(store: PairStore, config: EvalConfig):
    _, result = run_evaluation(config, store)
    folder = Path(result["report"])
    assert json.loads((folder / "results.json").read_text()) == result
    page = " ".join((folder / "report.html").read_text().split())
    text = table(result)
    ids = {place["model"]: place["model_id"] for place in result["models"]}
    for compared in (result, *result["other_comparisons"]):
        for judge, row in compared["scorers"].items():
            rate = f"{100 * row['win_rate']:.1f}"
            assert f"<td><strong>{rate} %</strong></td>" in page
            found = ask_rates(store, result["evaluation_id"], judge, ids[compared["model"]], ids[compared["baseline"]])
            assert found == (pytest.approx(row["win_rate"]), row["n_pairs"])
    for place in result["ranks"]["redness"]:
        assert f"<td>{place['strength']:+.0f}</td>".replace("-", "−") in page
        assert f"{place['strength']:+.0f}" in text
    assert text.count("win rate  95 % interval") == 2  # of both named models against their baselines


def ask_rates(store: PairStore, evaluation: str, judge: str, model: str, other: str) -> tuple:
    from prefloop.store.queries.saved import saved_query

    saved = saved_query("evaluation-win-rates")
    rows = ask(store, saved.sql, parameters=saved.values({"evaluation": evaluation})).to_pylist()
    (row,) = [
        row
        for row in rows
        if row["judge"].split("@")[0] == judge and {row["model_id"], row["other_id"]} == {model, other}
    ]
    return (row["win_rate"] if row["model_id"] == model else 1 - row["win_rate"]), row["pairs"]


@pytest.mark.slow(reason="generates and judges images")
def test_peoples_labels_are_a_judge_and_an_evaluation_is_reported_again_with_them(store: PairStore, config: EvalConfig):
    second, first = config.models
    config = replace(config, models=(second,), name="mine", scorers=("little_scorers:Redness",))
    _, result = run_evaluation(config, store)
    assert result["human"] == {"pairs": N_PROMPTS, "labelled": 0, "labels": 0, "ties": 0}
    assert "human" not in result["scorers"]
    before = store.rows(COUNTS)
    # two people: both chose the tuned one's image for 6 prompts, they differ on 2, and one tied on another
    of_second = dict(
        store.rows("select prompt_id, image_id from generations join models using (model_id) where name = $1", [second])
    )
    pairs = store.rows("select pair_id, prompt_id, image_a from pairs order by pair_id")
    for person in ("human:ann", "human:bob"):
        content.add_labeler(store, person)
    for number, (pair, prompt, image_a) in enumerate(pairs[:9]):
        tuned, base = ("a", "b") if image_a == of_second[prompt] else ("b", "a")
        content.add_label(store, pair, "human:ann", tuned if number < 8 else "tie")
        if number < 8:
            content.add_label(store, pair, "human:bob", tuned if number < 6 else base)
    content.add_label(store, pairs[9][0], "human:ann", "skip")  # as if nobody had seen it
    store.ingest()
    for folder in (second, first):
        shutil.move(folder, f"{folder}-gone")  # no model is needed, and no scorer
    evaluation, again = report_again("mine", None, store)
    assert store.rows(COUNTS) == before
    row = again["scorers"]["human"]
    # 6 wins, 3 prompts at one half, 3 without a label
    assert (row["wins"], row["ties"], row["losses"], row["n_pairs"], row["n_excluded"]) == (6, 3, 0, 9, 3)
    assert row["win_rate"] == pytest.approx(7.5 / 9)
    assert (row["base_mean"], row["in_sample"]) == (None, False)
    assert again["human"] == {"pairs": N_PROMPTS, "labelled": 9, "labels": 17, "ties": 1}
    unchanged = {key: value for key, value in again.items() if key not in ("scorers", "human", "tags")}
    assert unchanged == {key: value for key, value in result.items() if key in unchanged}
    assert again["scorers"]["redness"] == result["scorers"]["redness"]
    assert "human          83.3 %  –" in table(again)
    page = " ".join((Path(again["report"]) / "report.html").read_text().split())
    assert "people give no scores" in page
    assert f"people 50 % for {Path(again['model']).name}" in page
    rate, n = ask_rates(store, again["evaluation_id"], "human", again["model_id"], again["base_model_id"])
    assert (rate, n) == (pytest.approx(7.5 / 9), 9)
    # the card has the last result of each evaluation
    (evaluated,) = evaluations_of(store, evaluation.lineup.ids[0])
    assert evaluated["scorers"]["human"]["win_rate"] == pytest.approx(7.5 / 9)
    ended = CliRunner().invoke(
        app, ["eval", "--again", again["evaluation_id"][:8], "--json", "--store", str(store.path)]
    )
    assert ended.exit_code == 0, ended.stderr
    assert json.loads(ended.stdout) == again


def test_an_evaluation_by_people_alone_begins_without_a_result(store: PairStore, config: EvalConfig):
    words = ["eval", "--model", config.models[0], "--prompts", str(config.prompts), "--num-inference-steps", "1"]
    ended = CliRunner().invoke(app, [*words, "--scorer", "human", "--name", "blind", "--store", str(store.path)])
    assert ended.exit_code == 0, ended.stderr
    assert "No judge has a result yet." in ended.stdout
    lines = ended.stdout.splitlines()
    # 12 decided pairs: 47 are needed for 70 %
    assert lines[-3].startswith("people: 0 of 12 pairs labelled; with 12 decided pairs a true win rate of")
    assert lines[-3].endswith("70 % needs 47")
    assert lines[-2] == f"people label with:  prefloop label --queue eval:blind --store {store.path}"
    assert lines[-1] == f"then report again:  prefloop eval --again blind --store {store.path}"
    assert store.rows("select count(*) from scores") == [(0,)]


@pytest.mark.slow(reason="generates and judges images")
def test_a_store_is_created_for_an_evaluation_unless_a_name_is_wrong(
    config: EvalConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    words = ["eval", "--model", config.models[0], "--num-inference-steps", "1", "--scorer", "little_scorers:Redness"]
    for wrong in (["--prompts", "nothing.txt"], ["--prompts", str(config.prompts), "--baseline", "nothing"]):
        ended = CliRunner().invoke(app, [*words, *wrong, "--store", "new"])
        assert ended.exit_code != 0
        assert not Path("new").exists()
    ended = CliRunner().invoke(app, [*words, "--prompts", str(config.prompts), "--limit", "2", "--store", "new"])
    assert ended.exit_code == 0, ended.stderr
    assert "created the store new" in ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("evaluating ")]
    assert line.startswith(f"evaluating {config.models[0]} against ")
    assert f" on 2 prompts of {config.prompts} (1 step, guidance " in line
    assert line.endswith("): 4 images to generate, judged by redness")  # of two models
    missing = CliRunner().invoke(app, ["eval", "--again", "x", "--store", "nowhere"])
    assert missing.exit_code == 1
    assert "no store at nowhere" in missing.stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--again", "nothing"], "holds no evaluation; `prefloop eval` makes one"),
        (["--again", "x", "--model", "shapes"], "--again takes its settings from the evaluation; leave out --model"),
        (["--model", "shapes", "--name", "a b"], "name can have up to 64 letters"),
    ],
)
def test_bad_names_are_refused_in_one_line(store: PairStore, words: list[str], line: str):
    ended = CliRunner().invoke(app, ["eval", *words, "--store", str(store.path)])
    assert ended.exit_code == 2
    assert line in ended.stderr.splitlines()[-1]


def shown(votes: float = float("nan"), **scores: tuple[float, ...]) -> Shown:
    images = tuple(UUID(int=number) for number in range(len(next(iter(scores.values()), (0, 0)))))
    return Shown("a prompt", images, scores, votes)


def test_marks_say_which_image_is_better_and_nothing_where_the_judge_says_nothing():
    nan = float("nan")
    # the tuned model's image is the first
    assert [shown(votes).marks("human") for votes in (0.75, 0.25, 0.5, nan)] == [
        [True, None],
        [None, True],
        [None, None],
        [None, None],
    ]
    assert shown(hps=(0.2, 0.9, nan)).marks("hps") == [None, True, None]
    assert shown(hps=(0.9, 0.9, 0.1)).marks("hps") == [None, None, None]
    assert shown(oracle=(1.0, 0.0, nan)).marks("oracle") == [True, False, None]
    assert shown(oracle=(1.0, 0.0)).marks(None) == [None, None]


def test_a_tie_is_what_the_judge_cannot_tell_apart_and_nothing_is_one_without_a_judgement():
    nan = float("nan")
    assert [shown(votes).is_tie("human") for votes in (0.5, 0.75, nan)] == [True, False, False]
    for scores, tie in (((0.9, 0.9), True), ((0.9, 0.8), False), ((0.9, nan), False), ((0.9, 0.9, 0.1), False)):
        assert shown(hps=scores).is_tie("hps") == tie, scores
    assert not shown(hps=(0.9, 0.9)).is_tie(None)


def test_a_prompt_with_a_missing_score_is_not_among_the_largest_differences():
    nan = float("nan")
    assert shown(hps=(0.1, 0.9, 0.4)).spread("hps") == pytest.approx(0.8)
    assert all(
        math.isnan(shown(hps=scores).spread("hps")) for scores in ((nan, 1.0, 2.0), (1.0, nan, 2.0), (1.0, 2.0, nan))
    )
