"""A whole loop: what is in its store, its folder and its report, and what a later call of it does."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import content
import pytest
from little_loop import WORDS, digest, record, store_content, store_of, weights
from prefloop.core.errors import IntegrityError, UsageError
from prefloop.generate import GenerateConfig
from prefloop.generate.sampler import ImageSampler
from prefloop.generate.stage import plan
from prefloop.loop.best import best_round
from prefloop.loop.record import read_round
from prefloop.loop.result import keep_result
from prefloop.models.resolve import find_model
from prefloop.store import load_image
from prefloop.store.check import check

pytestmark = pytest.mark.slow(reason="two rounds of a loop are run for all of them")
N_PROMPTS, N_IMAGES, N_EVALUATED, MIN_MARGIN = 6, 2, 12, 1.6


def files_below(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): digest(path) for path in folder.rglob("*") if path.is_file()}


def test_every_image_pair_label_and_run_has_its_round(undisturbed_loop: Path):
    store = store_of(undisturbed_loop)
    with_round = "join run_rounds using (run_id) join models using (model_id) group by all order by all"
    # to label: 6 prompts twice, by the model before; to evaluate: 12 by the base, once, and 12 by the round's own model
    assert store.rows(f"select round, name, count(*) from generations {with_round}") == [
        (1, "loop/round-1", N_EVALUATED),
        (1, "shapes", N_PROMPTS * N_IMAGES + N_EVALUATED),
        (2, "loop/round-1", N_PROMPTS * N_IMAGES),
        (2, "loop/round-2", N_EVALUATED),
    ]
    # round 2 is compared with the base and with round 1
    query = "select round, source, count(*) from pairs join run_rounds using (run_id) group by all order by all"
    assert store.rows(query) == [(1, "eval", 12), (1, "generate", 6), (2, "eval", 24), (2, "generate", 6)]
    query = "select round, kind, count(*) from run_rounds join runs using (run_id) group by all order by all"
    once = ("generate", "relabel", "round", "train")
    assert store.rows(query) == [
        (1, "eval", 1),
        *((1, kind, 1) for kind in once),
        (2, "eval", 2),
        *((2, kind, 1) for kind in once),
    ]
    query = """select r.round, p.round, count(*) from current_labels l join run_rounds r using (run_id)
        join preferences p using (pair_id, labeler) where labeler = 'redness' group by all order by all"""
    assert store.rows(query) == [(1, 1, 6), (2, 2, 6)]
    for table in ("generations", "pairs", "labels", "scores"):
        assert store.rows(f"select count(*) from {table} anti join run_rounds using (run_id)") == [(0,)]
    assert store.rows("select distinct status from runs") == [("done",)]
    assert check(store) == []
    # the store knows the loop's folder, and those of its stages, from any folder
    ((folder,),) = store.rows("select distinct config->>'$.output_dir' from runs where kind = 'round'")
    assert Path(folder).resolve() == (undisturbed_loop / "loop").resolve()
    assert Path(folder).is_absolute()


def test_nothing_is_generated_or_scored_twice(undisturbed_loop: Path):
    store = store_of(undisturbed_loop)
    n_evaluation = 3 * N_EVALUATED  # the base's and those of two rounds
    assert store.rows("select count(*), count(distinct image_id) from generations") == [(24 + n_evaluation,) * 2]
    query = "select scorer, count(*), count(distinct (prompt_id, image_id)) from scores group by all order by all"
    assert store.rows(query) == [
        ("darkness@1", n_evaluation, n_evaluation),
        ("redness@1", 24 + n_evaluation, 24 + n_evaluation),
    ]


@pytest.mark.parametrize("number", [1, 2])
def test_a_round_trains_on_its_own_pairs_above_the_margin_and_counts_the_prompts_left_out(
    undisturbed_loop: Path, number: int
):
    store, kept = store_of(undisturbed_loop), record(undisturbed_loop, number)
    query = """select prompt, split, score from pairs p join run_rounds using (run_id) join prompts using (prompt_id)
        join scores s on s.prompt_id = p.prompt_id and s.image_id in (image_a, image_b)
        where round = ? and source = 'generate' and scorer = 'redness@1'"""
    scores: dict[tuple[str, str], list[float]] = {}
    for prompt, split, score in store.rows(query, [number]):
        scores.setdefault((prompt, split), []).append(score)
    margins = {key: abs(a - b) for key, (a, b) in scores.items()}
    assert kept["n_undecided_prompts"] == sum(margin <= MIN_MARGIN for margin in margins.values()) >= 1
    training = [key for key, margin in margins.items() if margin > MIN_MARGIN and key[1] == "train"]
    assert kept["n_pairs"] == kept["train"]["n_pairs"] == len(training) >= 2
    assert (kept["n_prompts"], kept["n_images"], kept["labeler"]) == (N_PROMPTS, N_PROMPTS * N_IMAGES, "redness")


def test_each_round_is_trained_on_the_one_before(undisturbed_loop: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(undisturbed_loop)
    first, second = find_model("loop/round-1"), find_model("loop/round-2")
    assert first.base is not None
    assert second.base is not None
    assert first.base.name == "shapes"
    assert second.base.model_id == first.model_id


def test_the_win_rates_of_a_round_are_those_of_its_images_scores(undisturbed_loop: Path):
    store = store_of(undisturbed_loop)
    query = """select g.prompt_id, m.name, s.scorer, s.score from generations g join models m using (model_id)
        join scores s using (prompt_id, image_id) join pairs p on p.prompt_id = g.prompt_id and p.source = 'eval'
        and g.image_id in (p.image_a, p.image_b) group by all"""
    scores = {(name, scorer, prompt): score for prompt, name, scorer, score in store.rows(query)}
    prompts = {prompt for _, _, prompt in scores}
    assert len(prompts) == N_EVALUATED
    for number, which, base in ((1, "base", "shapes"), (2, "base", "shapes"), (2, "previous", "loop/round-1")):
        for scorer in ("darkness", "redness"):
            key, tuned = f"{scorer}@1", f"loop/round-{number}"
            wins = [
                (1 + (scores[tuned, key, prompt] > scores[base, key, prompt]) - (scores[tuned, key, prompt] < scores[base, key, prompt])) / 2
                for prompt in prompts
            ]  # fmt: skip
            found = record(undisturbed_loop, number)[f"against_{which}"]["scorers"][scorer]
            assert found["win_rate"] == pytest.approx(sum(wins) / N_EVALUATED)
            assert found["in_sample"] == (scorer == "redness")


def test_the_result_is_the_best_round_and_generates_its_images(undisturbed_loop: Path):
    rounds = [read_round(undisturbed_loop / "loop" / f"round-{number}.json") for number in (1, 2)]
    best = best_round([kept for kept in rounds if kept is not None])
    folder, result = undisturbed_loop / "loop" / f"round-{best.number}", undisturbed_loop / "loop" / "result"
    for name in ("pytorch_lora_weights.safetensors", "prefloop.json", "training_prompts.csv"):
        assert (result / name).read_bytes() == (folder / name).read_bytes()
    card = (result / "README.md").read_text()
    assert card.count("Against `shapes`, from the same noise, on 12 prompts") == 1
    assert f"kept round {best.number}" in (undisturbed_loop / "printed").read_text()
    store = store_of(undisturbed_loop)
    settings = GenerateConfig(
        model=str(result), prompts="shapes-heldout", limit=2, seed=1, images_per_prompt=1, num_inference_steps=2
    )
    planned = plan(settings, None)
    (batch,) = ImageSampler(planned.model, planned.config).batches(planned.generations)
    for generation, image in zip(*batch, strict=True):
        # another batch size rounds differently
        query = "select image_id from generations where generation_id = ?"
        ((kept,),) = store.rows(query, [generation.generation_id])
        before = load_image(store.image_path(kept)).tobytes()
        assert max(abs(a - b) for a, b in zip(image.tobytes(), before, strict=True)) <= 2


def test_the_report_shows_the_rounds_side_by_side_and_its_images_exist(undisturbed_loop: Path):
    page = (undisturbed_loop / "loop" / "report.html").read_text()
    text = " ".join(re.sub("<[^>]+>", " ", page).split())
    for number in (1, 2):
        kept = record(undisturbed_loop, number)
        for which in ("against_base", "against_previous"):
            for row in kept[which]["scorers"].values():
                assert f"{100 * row['win_rate']:.1f} %" in text
    n_pairs = " ".join(str(record(undisturbed_loop, number)["n_pairs"]) for number in (1, 2))
    assert f"pairs trained on {n_pairs} " in text
    images = re.findall(r'src="([^"]+)"', page)
    assert len(images) == 1 + 8 * 3  # the plot; 8 prompts, of the base and two rounds
    assert all((undisturbed_loop / "loop" / image).is_file() for image in images)
    assert not re.findall(r"https?://", page)


def test_a_second_call_runs_nothing_and_says_the_same(copied_loop: Path):
    before, n_runs = store_content(copied_loop), store_of(copied_loop).rows("select count(*) from runs")
    rounds = {number: files_below(copied_loop / "loop" / f"round-{number}") for number in (1, 2)}
    code, printed = content.finished(*WORDS, cwd=copied_loop)
    assert code == 0, printed
    said = [
        line
        for line in (copied_loop / "printed").read_text().splitlines()
        if not re.search(r"it/s|s/it|LoRA on|^evaluating |^$", line)
    ]
    assert printed.splitlines() == said
    assert store_content(copied_loop) == before
    assert store_of(copied_loop).rows("select count(*) from runs") == n_runs
    for number in (1, 2):
        assert files_below(copied_loop / "loop" / f"round-{number}") == rounds[number]


def test_more_rounds_go_on_until_one_has_no_pair_and_leave_the_earlier_ones_as_they_are(copied_loop: Path):
    before = store_content(copied_loop)
    earlier = {name: files_below(copied_loop / "loop" / name) for name in ("round-1", "round-2")}
    records = [(copied_loop / "loop" / f"round-{number}.json").read_bytes() for number in (1, 2)]
    (copied_loop / "loop" / "result" / "mine.md").write_text("mine")
    code, printed = content.finished(*WORDS, "--rounds", 5, "--json", cwd=copied_loop)
    assert code == 0, printed
    assert {name: files_below(copied_loop / "loop" / name) for name in earlier} == earlier
    assert [(copied_loop / "loop" / f"round-{number}.json").read_bytes() for number in (1, 2)] == records
    after = store_content(copied_loop)
    for table, rows in before.items():
        assert not Counter(rows) - Counter(after[table])
    store = store_of(copied_loop)
    query = "select count(*) from generations join run_rounds using (run_id) where round = 3"
    assert store.rows(query) == [(N_PROMPTS * N_IMAGES + N_EVALUATED,)]  # the base's are there
    result = json.loads(printed.strip().splitlines()[-1])
    assert [each["number"] for each in result["rounds"]] == [1, 2, 3]
    # the settings train on no pair of round 4, as if its images could not be told apart
    assert result["stopped"].startswith(
        "round 4 has no pair to train on: 6 pairs of it are decided, with margins up to "
    )
    assert not (copied_loop / "loop" / "round-4").exists()
    assert "round 4 has no pair" in (copied_loop / "loop" / "report.html").read_text()
    best = result["best"]["number"]
    kept = weights(copied_loop)
    assert (
        kept["loop/result/pytorch_lora_weights.safetensors"]
        == kept[f"loop/round-{best}/pytorch_lora_weights.safetensors"]
    )
    assert (copied_loop / "loop" / "result" / "mine.md").read_text() == "mine"
    prompts = [
        {prompt for (prompt,) in store.rows("select distinct prompt from preferences where round = ? and source <> 'eval'", [number])}
        for number in (1, 2, 3)
    ]  # fmt: skip
    assert len(set.union(*prompts)) == 3 * N_PROMPTS  # no prompt came again, of 40


def test_a_better_round_replaces_the_result_and_other_files_stay(copied_loop: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(copied_loop)
    result, store = Path("loop/result"), store_of(copied_loop)
    shutil.rmtree(result)
    (copied_loop / "loop" / "round-1" / "notes.md").write_text("mine")
    for number in (1, 2, 1):
        keep_result(result, Path(f"loop/round-{number}"), store)
        (result / "notes.md").write_text("mine")
        assert json.loads((result / "prefloop.json").read_text()) == json.loads(
            Path(f"loop/round-{number}/prefloop.json").read_text()
        )
        assert find_model("loop/result").model_id == find_model(f"loop/round-{number}").model_id
        card = (result / "README.md").read_text()
        assert card.count("Against `") == number  # round 2 is compared with the base and with round 1
    assert (result / "notes.md").read_text() == "mine"
    (result / "pytorch_lora_weights.safetensors").unlink()
    keep_result(result, Path("loop/round-1"), store)
    assert find_model("loop/result").model_id == find_model("loop/round-1").model_id


def test_a_changed_result_is_not_overwritten_and_an_edited_card_is_kept(
    copied_loop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(copied_loop)
    result, store = Path("loop/result"), store_of(copied_loop)
    (result / "README.md").write_text("my own card")
    for number in (1, 2):
        keep_result(result, Path(f"loop/round-{number}"), store)
        assert find_model("loop/result").model_id == find_model(f"loop/round-{number}").model_id
    assert (result / "README.md").read_text() == "my own card"
    assert "was written or edited by somebody else" in capsys.readouterr().err
    (result / "pytorch_lora_weights.safetensors").write_bytes(b"mine")
    with pytest.raises(UsageError, match="has changed; move it away and run the same command again"):
        keep_result(result, Path("loop/round-1"), store)
    assert (result / "pytorch_lora_weights.safetensors").read_bytes() == b"mine"
    shutil.rmtree("loop/round-1")
    with pytest.raises(IntegrityError, match=r"loop/round-1 has no finished model.* move loop/round-1\.json away"):
        keep_result(result, Path("loop/round-1"), store)
