"""The pairs of one evaluation: which are labelled, what they can show, and when people's answer is settled or out of reach."""

import json
import math
import re
import signal
import subprocess
from collections.abc import Sequence
from itertools import combinations, product
from uuid import UUID

import numpy as np
import pytest
from content import (
    add_generation,
    add_image,
    add_labeler,
    add_pair,
    add_prompt,
    command,
    environment,
    fill,
    image_bytes,
)
from pages import label_server
from prefloop.cli import app
from prefloop.core.stats import Estimate
from prefloop.relabel.annotate.config import LabelConfig
from prefloop.relabel.annotate.outcome import comparisons, outcome, outcome_line, plan_lines, project, tie_rate
from prefloop.relabel.annotate.queue import pairs_to_label
from prefloop.store import PairStore, UsageError, prompt_id
from prefloop.store.evaluations import add_evaluation
from prefloop.store.pairstore import new_pair
from prefloop.store.runs import run
from test_browse import entered
from typer.testing import CliRunner

BASE, TUNED, THIRD = UUID(int=1), UUID(int=2), UUID(int=3)


def evaluated(
    store: PairStore, n_prompts: int, *, models: dict[UUID, str] | None = None, per_prompt: int = 1, name: str = "first"
) -> tuple[UUID, list[UUID]]:
    """An evaluation of base and tuned whose images all differ; its id, and its pairs by prompt and index."""
    models = models or {BASE: "base", TUNED: "tuned"}
    known = {model for (model,) in store.rows("select model_id from models")}
    store.append("models", [{"model_id": m, "name": n, "config": "{}"} for m, n in models.items() if m not in known])
    store.add_prompts((f"{name} {number}", {}) for number in range(n_prompts))
    images, generations, pairs = [], [], []
    for number, index in product(range(n_prompts), range(per_prompt)):
        prompt, of_models = prompt_id(f"{name} {number}"), []
        for model in models:
            row = store.write_image(image_bytes((number, 50 * index + model.int, len(name))), 8, 8)
            images.append(row)
            of_models.append(row["image_id"])
            ids = {"generation_id": UUID(int=model.int ^ row["image_id"].int), "prompt_id": prompt, "model_id": model}
            rest = {"image_id": row["image_id"], "sampling": "{}", "seed": 0, "image_index": index}
            generations.append(ids | rest)
        pairs += [new_pair(prompt, first, second, "eval") for first, second in combinations(of_models, 2)]
    rows = [pair for pair in pairs if pair]
    for table, of_table in (("images", images), ("generations", generations), ("pairs", rows)):
        store.append(table, of_table)
    store.ingest()
    evaluation = add_evaluation(store, {row["generation_id"]: (place, {}) for place, row in enumerate(generations)})
    with run(store, "eval", {"name": name}) as eval_run:
        eval_run.summary["evaluation_id"] = str(evaluation)
    store.ingest()
    return evaluation, [row["pair_id"] for row in rows]


def choose(store: PairStore, pairs: list[UUID], winners: str, labeler: str = "human:ann") -> None:
    """Labels by winner: b is base, t tuned and = a tie."""
    if not store.rows("select 1 from labelers where labeler = ?", [labeler]):
        add_labeler(store, labeler)
    query = """select p.pair_id, p.image_a = g.image_id from pairs p
        join generations g on g.prompt_id = p.prompt_id and g.model_id = ? and g.image_id in (p.image_a, p.image_b)"""
    base_is_a = dict(store.rows(query, [BASE]))
    sides = [
        "tie" if winner == "=" else "a" if (winner == "b") == base_is_a[pair] else "b"
        for pair, winner in zip(pairs, winners, strict=True)
    ]
    add_labels(store, pairs, labeler, sides)


def add_labels(store: PairStore, pairs: list[UUID], labeler: str, choices: Sequence[str]) -> None:
    row = {"labeler": labeler, "revision": 0}
    store.append("labels", [row | {"pair_id": p, "choice": c} for p, c in zip(pairs, choices, strict=True)])
    store.ingest()


def test_a_queue_of_an_evaluation_has_its_pairs_only_and_first_one_of_each_prompt(store: PairStore):
    fill(store, 2)
    first, pairs = evaluated(store, 6, per_prompt=2)
    _, others = evaluated(store, 2, name="second")
    queue = pairs_to_label(store, LabelConfig(queue="eval:first"))
    assert set(queue) == set(pairs)
    assert pairs_to_label(store, LabelConfig(queue=f"eval:{first.hex[:10]}")) == queue
    assert pairs_to_label(store, LabelConfig(queue="eval:first", seed=1)) != queue
    prompts = dict(store.rows("select pair_id, prompt_id from pairs"))
    assert len({prompts[pair] for pair in queue[:6]}) == 6
    assert len({prompts[pair] for pair in queue[6:]}) == 6
    assert set(pairs_to_label(store, LabelConfig(queue="eval:second"))) == set(others)
    with pytest.raises(UsageError, match="no evaluation is named 'third'; choose from second, first"):
        pairs_to_label(store, LabelConfig(queue="eval:third"))


def test_people_decide_between_two_models_and_ties_count_one_half(store: PairStore):
    evaluation, pairs = evaluated(store, 6)
    (before,) = comparisons(store, evaluation)
    assert (before.status, before.win_rate, before.n_left) == ("not labelled", None, 6)
    choose(store, pairs[:4], "btt=")
    choose(store, pairs[:1], "t", labeler="human:ben")  # a second opinion
    (found,) = comparisons(store, evaluation)
    assert (found.model, found.other) == ("base", "tuned")
    assert found.win_rate is not None
    # prompts: ½ (base, then tuned), 0, 0, ½
    assert found.win_rate.value == 0.25
    assert (found.n_pairs, found.n_labelled, found.n_left, found.n_prompts) == (6, 4, 2, 4)
    assert found.status == "too few prompts"
    words = ["store", "query", "--name", "evaluation-win-rates", "--format", "json", "--store", str(store.path)]
    (row,) = json.loads(CliRunner().invoke(app, words).stdout)  # the saved query agrees
    assert (row["model"], row["win_rate"], row["prompts"], row["pairs"]) == ("base", 0.25, 4, 4)


def test_equal_images_need_no_label_and_do_not_count(store: PairStore):
    store.append("models", [{"model_id": m, "name": n, "config": "{}"} for m, n in ((BASE, "m"), (TUNED, "m"))])
    prompt, image = add_prompt(store, "same"), add_image(store, (1, 1, 1))
    same = [add_generation(store, prompt, model, image) for model in (BASE, TUNED)]
    prompt = add_prompt(store, "other")
    one, two = add_image(store, (2, 1, 1)), add_image(store, (3, 1, 1))
    other = [add_generation(store, prompt, model, image) for model, image in ((BASE, one), (TUNED, two))]
    pair = add_pair(store, prompt, one, two, "eval")
    store.ingest()
    evaluation = add_evaluation(store, {generation: (place // 2, {}) for place, generation in enumerate(same + other)})
    store.ingest()
    choose(store, [pair], "b")
    (found,) = comparisons(store, evaluation)
    assert found.win_rate is not None
    assert (found.n_pairs, found.n_equal, found.n_labelled, found.n_left) == (1, 1, 1, 0)
    assert found.win_rate.value == 1.0
    assert plan_lines(store, evaluation, [pair])[-1].endswith("; 1 more have equal images")
    assert found.model == "m (00000000)"  # two models of one name are told apart by their ids


def test_every_two_of_three_models_are_compared(store: PairStore):
    evaluation, pairs = evaluated(store, 2, models={BASE: "base", TUNED: "tuned", THIRD: "third"})
    found = {(each.model, each.other): each for each in comparisons(store, evaluation)}
    assert set(found) == {("base", "tuned"), ("base", "third"), ("tuned", "third")}
    assert {each.n_pairs for each in found.values()} == {2}
    limited = comparisons(store, evaluation, pairs[:1])
    assert [(each.model, each.other, each.n_pairs) for each in limited] == [("base", "tuned", 1)]


@pytest.mark.parametrize(
    ("low", "value", "high", "n", "n_total", "expected"),
    [
        # 0.68 ± 0.1 · 1.679 is above 0.512
        (0.58, 0.68, 0.78, 100, 400, "settled"),
        # 0.66 ± 0.168 begins at 0.492
        (0.56, 0.66, 0.76, 100, 400, "ahead so far"),
        (0.58, 0.68, 0.78, 19, 400, "ahead so far"),
        (0.56, 0.66, 0.76, 400, 400, "settled"),  # the last look
        # four times the pairs: half of the width, 0.56 ± 0.04, which excludes ½
        (0.48, 0.56, 0.64, 100, 400, "open"),
        # 0.52 ± 0.04 contains ½; won at 0.6, the others make (0.52 + 3 · 0.6) / 4 = 0.58, less 0.04
        (0.44, 0.52, 0.60, 100, 400, "not settled at this rate"),
        # 11 pairs more, of 100: won at 0.6 they make 0.519; the interval narrows from ±0.1 to ±0.095
        (0.40, 0.50, 0.60, 100, 111, "cannot be settled"),
        # nothing is left
        (0.44, 0.52, 0.60, 100, 100, "cannot be settled"),
        (math.nan, 0.9, math.nan, 9, 400, "too few prompts"),
    ],
)
def test_an_answer_is_settled_open_or_out_of_reach(
    low: float, value: float, high: float, n: int, n_total: int, expected: str
):
    assert outcome(Estimate(value, low, high), n, n_total) == expected
    mirrored = Estimate(1 - value, 1 - high, 1 - low)
    assert outcome(mirrored, n, n_total) == expected


def test_equal_models_are_seldom_settled_although_somebody_looks_often():
    """One vote for each of 100 prompts, at random; a look after every fifth."""
    rng, settled, stopped = np.random.default_rng(0), 0, 0
    for _ in range(200):
        wins = rng.choice([0, 0.5, 1], 100, p=[0.4, 0.2, 0.4])
        statuses, excluded = set(), False
        for n in range(20, 101, 5):
            value, half = wins[:n].mean(), 1.96 * wins[:n].std() / math.sqrt(n)
            statuses.add(outcome(Estimate(value, value - half, value + half), n, 100))
            excluded |= abs(value - 0.5) > half
        settled += "settled" in statuses
        stopped += excluded
    assert stopped / 200 > 0.15  # who stops at the first interval that excludes one half
    assert settled / 200 < 0.1


def test_a_projection_narrows_with_the_root_of_the_number_of_pairs():
    found = project(Estimate(0.5, 0.4, 0.6), 0.6, 100, 400)
    assert (found.value, found.low, found.high) == pytest.approx((0.575, 0.525, 0.625))


def test_what_labelling_can_show_is_said_before_it_begins(store: PairStore):
    evaluation, pairs = evaluated(store, 40)
    assert plan_lines(store, evaluation, pairs) == [
        "the share of ties is not known yet: none are assumed",
        # 40 pairs: 71.7 % by the formula
        "base against tuned: with 40 decided pairs a true win rate of 72 % shows; 70 % needs 47",
    ]
    choose(store, pairs[:20], "bt=bt" * 4)
    assert plan_lines(store, evaluation, pairs) == [
        "20 % ties so far, of 20 labels by people of these pairs",
        "base against tuned: 40 pairs with 20 % ties are about 32 decided ones: "
        "a true win rate of 74 % shows; 70 % needs 47, 59 pairs with 20 % ties",
    ]


def test_a_tie_rate_comes_from_people_and_from_enough_labels(store: PairStore):
    others, (_, pairs) = fill(store, 30), evaluated(store, 30)
    add_labeler(store, "human:ann")
    add_labeler(store, "scorer", "ai")
    add_labels(store, others, "human:ann", ["tie"] * 6 + ["a"] * 24)
    add_labels(store, others, "scorer", ["a"] * 30)
    choose(store, pairs[:19], "=" * 19)
    # 19 of these pairs are too few; in the store there are 49, of which 25 are ties
    assert tie_rate(store, pairs) == (25 / 49, "49 labels by people in this store")
    choose(store, pairs[19:], "b" * 11)
    assert tie_rate(store, pairs) == (19 / 30, "30 labels by people of these pairs")
    assert tie_rate(store, pairs[:19]) == (25 / 60, "60 labels by people in this store")


def test_the_operator_sees_the_outcome_and_the_rater_does_not(store: PairStore):
    evaluation, pairs = evaluated(store, 30)
    choose(store, pairs[:20], "t" * 18 + "b=")
    operator = entered(store).get("/evaluations").text
    # tuned wins 18.5 of 20; base 7.5 %
    assert ">settled</td>" in operator
    assert "7.5 % (" in operator
    assert "prefloop label --queue eval:first" in operator
    server = label_server(store, queue="eval:first")
    person = server.enter("ben")
    for text in (person.text, person.choose("left").text):
        assert re.search("settled|win rate|wins|tuned|base", text) is None
    assert person.client.get("/evaluations").status_code == 404
    (found,) = comparisons(store, evaluation)
    line = outcome_line(found)
    assert line.startswith("base against tuned: settled; base wins 7.5 % (")
    assert line.endswith("20 pairs labelled, 10 left")
    assert "No evaluations yet" in entered(PairStore.create(store.path.parent / "other")).get("/evaluations").text


def test_an_outcome_that_is_not_settled_says_what_it_would_become(store: PairStore):
    evaluation, pairs = evaluated(store, 60)
    choose(store, pairs[:20], "bt" * 9 + "bb")
    (found,) = comparisons(store, evaluation)
    assert found.projected is not None
    assert (found.status, found.projected.value) == ("not settled at this rate", pytest.approx(0.55))
    ends = f"{100 * found.projected.low:.1f} to {100 * found.projected.high:.1f} %"
    assert outcome_line(found).endswith(f"40 left; if they went as those so far, the interval would be {ends}")
    choose(store, pairs[20:58], "bt" * 19)
    (found,) = comparisons(store, evaluation)
    assert found.status == "cannot be settled"
    assert "2 left: even if they went as well for either model as the interval allows" in outcome_line(found)


@pytest.mark.slow(reason="starts processes")
@pytest.mark.parametrize("as_json", [False, True])
def test_label_says_what_can_be_shown_and_ends_with_the_outcome(store: PairStore, as_json: bool):
    _, pairs = evaluated(store, 30)
    choose(store, pairs[:20], "t" * 20)
    words = command("label", "--queue", "eval:first", "--port", 0, "--store", store.path, *["--json"] * as_json)
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "http" in process.stdout.readline()  # it serves
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "base against tuned: with 30 decided pairs a true win rate of 7" in err
    if as_json:
        (compared,) = json.loads(out.splitlines()[-1])["comparisons"]
        assert (compared["status"], compared["n_labelled"]) == ("settled", 20)
    else:
        assert "base against tuned: settled; base wins 0.0 % (0.0 to 16.1), 20 pairs labelled, 10 left" in out


def test_raters_can_be_measured_on_one_evaluation(store: PairStore):
    others, (_, pairs) = fill(store, 3), evaluated(store, 4)
    choose(store, pairs, "bttb")
    add_labels(store, others[:1], "human:ann", ["a"])
    ended = CliRunner().invoke(app, ["raters", "--json", "--queue", "eval:first", "--store", str(store.path)])
    assert [rater["n_labels"] for rater in json.loads(ended.stdout)["raters"]] == [4]
