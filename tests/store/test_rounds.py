"""Rounds of a loop: which run, pair and preference belongs to which round, and the rank of a pair by its margin."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

import pytest
from content import add_generation, add_image, add_label, add_labeler, add_pair, add_prompt
from prefloop.core.errors import Interrupted
from prefloop.store import PairStore
from prefloop.store.condition import condition
from prefloop.store.exporters.config import ExportConfig
from prefloop.store.exporters.select import selected_labels
from prefloop.store.queries.saved import saved_query
from prefloop.store.query import ask
from prefloop.store.runs import Run, run
from prefloop.train import TrainConfig
from prefloop.train.pairs import select_pairs


@contextmanager
def stage(store: PairStore, number: int, kind: str = "generate") -> Iterator[Run]:
    """A run of a stage in a round."""
    with run(store, "round", {"round": number}), run(store, kind, {}) as this:
        yield this


class Images:
    """New images, each of another color."""

    def __init__(self, store: PairStore) -> None:
        self.store, self.n = store, 0

    def pair(self, prompt: UUID, source: str = "generate", run_id: UUID | None = None) -> UUID:
        self.n += 2
        images = [add_image(self.store, (self.n + side, 0, 0)) for side in range(2)]
        return add_pair(self.store, prompt, *images, source=source, run_id=run_id)


@pytest.fixture
def rounds(store: PairStore) -> PairStore:
    """Two rounds, two prompts, and pairs from elsewhere; each pair's margin is its name.

    one: round 1 has margins 5, 3, 4, and a tie of 9; round 2 has 2, 6, an evaluation pair of 8, and a pair that only ann decided.
    two: round 1 has 1; round 2 has 7 twice. Without a round: 10 under one, imported.
    """
    for labeler in ("red", "ann"):
        add_labeler(store, labeler)
    images, one, two = Images(store), add_prompt(store, "one"), add_prompt(store, "two")

    def labeled(prompt: UUID, margins: list[float], run_id: UUID | None, source: str = "generate") -> None:
        for margin in margins:
            pair = images.pair(prompt, source, run_id)
            add_label(store, pair, "red", "a", margin=margin)

    with stage(store, 1) as generated:
        labeled(one, [5, 3, 4], generated.run_id)
        labeled(two, [1], generated.run_id)
        add_label(store, images.pair(one, run_id=generated.run_id), "red", "tie", margin=9)
    with stage(store, 2) as generated:
        labeled(one, [2], generated.run_id)
    with stage(store, 2) as generated:  # the round was resumed
        labeled(one, [6], generated.run_id)
        labeled(two, [7, 7], generated.run_id)
        add_label(store, images.pair(one, run_id=generated.run_id), "ann", "b")
    with stage(store, 2, "eval") as evaluated:
        labeled(one, [8], evaluated.run_id, "eval")
    labeled(one, [10], None, "import")
    store.ingest()
    return store


def test_each_run_of_a_round_has_its_number_and_no_other_run_has_one(store: PairStore):
    with stage(store, 3) as first, run(store, "part", {"round": 8}):
        pass
    with stage(store, 12) as second, run(store, "generate", {"round": 8}, parents=[first.run_id]):
        pass
    with run(store, "round", {"round": "many"}), run(store, "generate", {}):
        pass
    with run(store, "generate", {"round": "many"}):
        pass
    store.ingest()
    rows = "select round, list(run_id order by run_id) from run_rounds group by round order by round"
    parent = {number: UUID(row) for number, row in store.rows("select config->>'$.round', run_id::varchar from runs")}
    assert store.rows(rows) == [
        (3, sorted([parent["3"], first.run_id])),
        (12, sorted([parent["12"], second.run_id])),
    ]


def test_preferences_have_the_round_of_the_run_that_made_the_pair(rounds: PairStore):
    query = (
        "select round, list(margin order by margin) from preferences where labeler <> 'ann' group by all order by all"
    )
    assert rounds.rows(query) == [(1, [1, 3, 4, 5]), (2, [2, 6, 7, 7, 8]), (None, [10])]
    assert rounds.rows("select round from preferences where labeler = 'ann'") == [(2,)]
    training = "select round, count(*) from training_preferences group by all order by all"
    assert rounds.rows(training) == [(1, 4), (2, 5), (None, 1)]


def ranks(store: PairStore, prompt: str) -> list[tuple]:
    query = "select round, margin, margin_rank from preferences where prompt = ? order by round, margin"
    return store.rows(query, [prompt])


def test_the_largest_margin_of_a_labeler_prompt_and_round_has_rank_1(rounds: PairStore):
    # neither the tie of 9 nor the evaluation pair of 8, which is alone among its kind, changes another pair's rank
    assert ranks(rounds, "one") == [
        (1, 3.0, 3),
        (1, 4.0, 2),
        (1, 5.0, 1),
        (2, 2.0, 2),
        (2, 6.0, 1),
        (2, 8.0, 1),
        (2, None, None),
        (None, 10.0, 1),
    ]


def test_equal_margins_are_ranked_by_the_pairs_ids(rounds: PairStore):
    assert ranks(rounds, "two") == [(1, 1.0, 1), (2, 7.0, 1), (2, 7.0, 2)]
    by_rank = "select pair_id from preferences where prompt = 'two' and round = 2 order by {}"
    assert rounds.rows(by_rank.format("margin_rank")) == rounds.rows(by_rank.format("pair_id"))


def test_another_labelers_margins_do_not_change_the_ranks(rounds: PairStore):
    before = ranks(rounds, "one")
    (pair,) = rounds.rows("select pair_id from preferences where margin = 3")[0]
    add_label(rounds, pair, "ann", "a", margin=100)
    rounds.ingest()
    assert sorted(map(str, ranks(rounds, "one"))) == sorted(map(str, [*before, (1, 100.0, 1)]))


def test_a_revised_label_changes_the_ranks(rounds: PairStore):
    (pair,) = rounds.rows("select pair_id from preferences where margin = 5")[0]
    add_label(rounds, pair, "red", "skip", revision=1)
    rounds.ingest()
    assert [row for row in ranks(rounds, "one") if row[0] == 1] == [(1, 3.0, 2), (1, 4.0, 1)]


CONDITIONS = {
    "round = 1": [1, 3, 4, 5],
    "round = 2 and margin > 2": [6, 7, 7],
    "round = 2 and margin > 3 and margin_rank <= 1": [6, 7],
    # the rank is among all pairs of the round, not among those that the condition leaves
    "margin < 5 and margin_rank = 1": [1],
    "margin_rank <= 2": [1, 2, 4, 5, 6, 7, 7, 10],
    "round is null": [10],
}


@pytest.mark.parametrize("where", CONDITIONS)
def test_training_and_export_select_by_round_and_rank(rounds: PairStore, where: str):
    assert condition(where)
    selected = select_pairs(rounds, TrainConfig(output_dir="unused", labelers=("red",), where=where))
    pairs = [pair.pair_id for pair in selected.train + selected.validation]
    margins = dict(rounds.rows("select pair_id, margin from preferences where labeler = 'red'"))
    assert sorted(margins[pair] for pair in pairs) == CONDITIONS[where]
    config = ExportConfig(output_dir=rounds.path.parent / "out", format="webdataset", labelers=("red",), where=where)
    assert sorted(selected_labels(rounds, config)["margin"].to_pylist()) == CONDITIONS[where]


def saved(store: PairStore, name: str, **values: object) -> list[tuple]:
    query = saved_query(name)
    return [tuple(row.values()) for row in ask(store, query.sql, parameters=query.values(values)).to_pylist()]


def test_the_query_rounds_counts_what_each_round_made(rounds: PairStore):
    """Each image of the fixture's pairs was generated in the run that made the pair, as evaluations do too."""
    rows = "select prompt_id, unnest([image_a, image_b]), run_id from pairs where run_id is not null order by all"
    for prompt, image, run_id in rounds.rows(rows):
        add_generation(rounds, prompt, UUID(int=1), image, run_id=run_id)
    # an image of round 1 that is in no pair, and one from elsewhere
    ((prompt, first),) = rounds.rows("select prompt_id, run_id from preferences where margin = 1")
    add_generation(rounds, prompt, UUID(int=1), add_image(rounds, (0, 1, 0)), run_id=first)
    add_generation(rounds, prompt, UUID(int=1), add_image(rounds, (0, 2, 0)))
    with stage(rounds, 3):  # it has made nothing yet
        pass
    rounds.ingest()
    assert saved(rounds, "rounds") == [
        # red decided 5, 3, 4 and 1, of mean 13 / 4; the tie is a pair that it did not decide
        (1, 2, 11, 5, '{"red":4}', '{"red":3.25}'),
        # red decided 2, 6, 7 and 7, of mean 22 / 4; ann has no margins; the evaluation is not counted
        (2, 2, 10, 5, '{"ann":1,"red":4}', '{"red":5.5}'),
        (3, 0, 0, 0, "{}", "{}"),
    ]


BASE, ONE, TWO = (UUID(int=number) for number in (1, 2, 3))


@pytest.fixture
def evaluated(store: PairStore) -> PairStore:
    """Round 1: the model one beats base on 2 of 4 prompts, loses 1 and ties 1. Round 2: two against base and against one."""
    names = {BASE: "base", ONE: "one", TWO: "two"}
    store.append("models", [{"model_id": model, "name": name, "config": "{}"} for model, name in names.items()])
    for labeler in ("eval:red@1", "eval:blue@1", "ann"):
        add_labeler(store, labeler)
    prompts = [add_prompt(store, f"prompt {number}") for number in range(4)]
    images = {
        (prompt, model): add_image(store, (number, model.int, 0))
        for number, prompt in enumerate(prompts)
        for model in names
    }
    for (prompt, model), image in images.items():
        add_generation(store, prompt, model, image)

    def compare(this: Run, model: UUID, other: UUID, **choices: str) -> None:
        """By labeler, the winner of each prompt's pair: m(odel), o(ther), t(ie), s(kip), or - without a label."""
        for number, prompt in enumerate(prompts):
            mine, others = images[prompt, model], images[prompt, other]
            pair = add_pair(store, prompt, mine, others, "eval", this.run_id)
            sides = {"m": "ab"[mine > others], "o": "ab"[others > mine], "t": "tie", "s": "skip"}
            for labeler, winners in choices.items():
                if winners[number] != "-":
                    add_label(store, pair, {"ann": "ann"}.get(labeler, f"eval:{labeler}@1"), sides[winners[number]])
        this.summary |= {"model_id": str(model), "base_model_id": str(other)}

    with stage(store, 1, "eval") as this:
        compare(this, ONE, BASE, red="mmot", blue="os-o", ann="oooo")
    with suppress(Interrupted), stage(store, 2, "eval") as this:
        compare(this, TWO, BASE, red="m---")
        raise Interrupted("stopped")
    with stage(store, 2, "eval") as this:  # the round was resumed: the pairs and the first label exist
        compare(this, TWO, BASE, red="mmmo")
    with stage(store, 2, "eval") as this:
        compare(this, TWO, ONE, red="tttm")
    store.ingest()
    return store


def test_the_query_round_win_rates_compares_each_rounds_model_with_the_others(evaluated: PairStore):
    red = [
        (1, "eval:red@1", "one", "base", 4, 0.625, 1),  # (1 + 1 + 0 + 1/2) / 4
        (2, "eval:red@1", "two", "base", 4, 0.75, 0),  # 3 of 4
        (2, "eval:red@1", "two", "one", 4, 0.625, 3),  # (3 · 1/2 + 1) / 4
    ]
    blue = [(1, "eval:blue@1", "one", "base", 2, 0.0, 0)]  # a skip and a missing label are not counted
    assert saved(evaluated, "round-win-rates") == blue + red
    assert saved(evaluated, "round-win-rates", labeler="eval:red@1") == red


def test_queries_without_the_rank_compute_none(rounds: PairStore):
    def plan(columns: str) -> str:
        ((_, text),) = rounds.rows(f"explain select {columns} from preferences where labeler = 'red'")
        return text.lower()

    assert "window" in plan("margin_rank")
    columns = [name for (name,) in rounds.rows("select column_name from (describe preferences)")]
    assert columns[-1] == "margin_rank"
    assert "window" not in plan(", ".join(columns[:-1]))
