"""Pairs of images that are in the store: which ones each strategy makes, counted by hand, and never those of an evaluation."""

import json
import shlex
import shutil
import signal
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow.parquet as pq
import pytest
from content import add_generation, add_image, add_label, add_labeler, add_pair, add_prompt, add_scores
from prefloop.cli import app
from prefloop.core.errors import Interrupted
from prefloop.generate.pair_config import PairConfig
from prefloop.generate.pair_stage import pair, plan
from prefloop.generate.pairing import STRATEGIES, Candidate, pair_up
from prefloop.store import PairStore, UsageError
from prefloop.store.check import check, logical_hashes
from prefloop.store.evaluations import add_evaluation
from prefloop.store.runs import run
from typer.testing import CliRunner

RUNNER = CliRunner()
FOX_SCORES = {"a0": 1.0, "a1": 4.0, "a2": 2.0, "a3": 2.5, "b0": 7.0, "b1": 3.5}
"""Of "a fox": four images by model a, then two by model b."""


@dataclass
class World:
    """A store with names for its images."""

    store: PairStore
    fox: UUID
    cat: UUID
    images: dict[str, UUID]

    def pair(self, strategy: str = "all", **settings: Any) -> dict:
        return pair(PairConfig(pairing=strategy, **settings), self.store)

    def pairs(self, prompt: UUID | None = None) -> set[frozenset[str]]:
        """The store's pairs of "a fox", or of another prompt, by the names of their images."""
        names = {image: name for name, image in self.images.items()}
        query = "select image_a, image_b from pairs where prompt_id = ?"
        return {frozenset((names[a], names[b])) for a, b in self.store.rows(query, [prompt or self.fox])}


@pytest.fixture
def world(_world: World, tmp_path: Path) -> World:
    """Model a generated four images of a fox and two of a cat, model b later two of the fox. Nothing is paired."""
    return replace(_world, store=PairStore(shutil.copytree(_world.store.path, tmp_path / "store")))


@pytest.fixture(scope="module")
def _world(_empty: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    store = PairStore(shutil.copytree(_empty, tmp_path_factory.mktemp("world") / "store"))
    models = {"a": UUID(int=1), "b": UUID(int=2)}
    store.append(
        "models", [{"model_id": identity, "name": f"model-{name}", "config": "{}"} for name, identity in models.items()]
    )
    fox, cat = add_prompt(store, "a fox", style="photo"), add_prompt(store, "a cat", style="drawing")
    images: dict[str, UUID] = {}
    for model, of_prompt in (("a", {"a": (fox, 4), "c": (cat, 2)}), ("b", {"b": (fox, 2)})):
        with run(store, "generate", {}) as generate_run:
            for letter, (prompt, n) in of_prompt.items():
                for index in range(n):
                    image = add_image(store, (40 * index, ord(letter), 0))
                    images[f"{letter}{index}"] = image
                    add_generation(store, prompt, models[model], image, index, generate_run.run_id)
    add_scores(store, "pickscore@1", {(fox, images[name]): score for name, score in FOX_SCORES.items()})
    store.ingest()
    return World(store, fox, cat, images)


def named(*pairs: str) -> set[frozenset[str]]:
    """{"a0-b1"} as pairs of names."""
    return {frozenset(names.split("-")) for names in pairs}


# Strategies


def test_all_pairs_every_two_images_of_a_prompt_whatever_their_model(world: World):
    summary = world.pair("all")
    # 6 images of the fox make 6 x 5 / 2 = 15 pairs, 2 of the cat make 1
    assert (summary["images"], summary["prompts"], summary["pairs"], summary["new_pairs"]) == (8, 2, 16, 16)
    assert world.pairs() == {frozenset(both) for both in combinations(FOX_SCORES, 2)}
    assert world.pairs(world.cat) == named("c0-c1")
    assert world.store.rows("select distinct source, run_id is not null from pairs") == [("pair", True)]
    assert check(world.store) == []


def test_adjacent_pairs_each_image_with_the_next_one_that_was_generated(world: World):
    # model b's run came after model a's: a0 a1 a2 a3 b0 b1
    assert world.pair("adjacent")["pairs"] == 6
    assert world.pairs() == named("a0-a1", "a1-a2", "a2-a3", "a3-b0", "b0-b1")


def test_random_uses_each_image_once_and_follows_from_the_seed(world: World):
    assert world.pair("random", seed=3)["pairs"] == 3 + 1
    first = world.pairs()
    assert sorted(name for both in first for name in both) == sorted(FOX_SCORES)
    assert world.pair("random", seed=3)["new_pairs"] == 0
    assert {world.pair("random", seed=seed)["new_pairs"] > 0 for seed in (3, 4)} == {False, True}
    assert world.pairs() > first


def test_best_worst_pairs_the_highest_score_with_the_lowest(world: World):
    summary = world.pair("best-worst", scorer="pickscore")
    assert world.pairs() == named("b0-a0")
    # the cat's two images have no score
    assert {name: summary[name] for name in ("images", "prompts", "unscored_images", "pairs")} == {
        "images": 6,
        "prompts": 1,
        "unscored_images": 2,
        "pairs": 1,
    }
    assert world.pairs(world.cat) == set()


def test_best_worst_makes_no_pair_of_equal_scores(world: World):
    add_scores(world.store, "flat@1", {(world.cat, world.images[name]): 5.0 for name in ("c0", "c1")})
    world.store.ingest()
    assert world.pair("best-worst", scorer="flat")["pairs"] == 0
    assert world.pair("close", scorer="flat")["pairs"] == 1
    assert pair_up([Candidate(UUID(int=number), score=5.0) for number in range(3)], "best-worst", "") == []


def test_an_image_of_two_prompts_has_a_score_for_each(world: World):
    # a0 is the fox's worst image; for the cat it is the best
    add_generation(world.store, world.cat, UUID(int=1 << 64), world.images["a0"], 2)
    scores = {(world.cat, world.images[name]): score for name, score in (("a0", 9.0), ("c0", 8.0), ("c1", 7.5))}
    world.store.append(
        "scores",
        [
            {"scorer": "pickscore@1", "prompt_id": prompt, "image_id": image, "score": score}
            for (prompt, image), score in scores.items()
        ],
    )
    world.store.ingest()
    assert world.pair("best-worst", scorer="pickscore")["pairs"] == 2
    assert world.pairs() == named("b0-a0")
    assert world.pairs(world.cat) == named("a0-c1")


def test_close_pairs_neighbors_by_score_and_keeps_the_smallest_differences(world: World):
    # by score a0 1, a2 2, a3 2.5, b1 3.5, a1 4, b0 7: differences 1, 0.5, 1, 0.5, 3
    assert world.pair("close", scorer="pickscore@1", pairs_per_prompt=2)["pairs"] == 2
    assert world.pairs() == named("a2-a3", "b1-a1")
    assert world.pair("close", scorer="pickscore@1", pairs_per_prompt=4)["new_pairs"] == 2
    assert world.pairs() == named("a2-a3", "b1-a1", "a0-a2", "a3-b1")
    assert world.pair("close", scorer="pickscore@1")["new_pairs"] == 1
    assert world.pairs() >= named("a1-b0")


def test_across_models_pairs_only_images_of_different_models(world: World):
    # 4 of model a with 2 of model b; the cat has images of one model
    assert world.pair("across-models")["pairs"] == 8
    assert world.pairs() == {frozenset((a, b)) for a in ("a0", "a1", "a2", "a3") for b in ("b0", "b1")}
    assert world.pairs(world.cat) == set()


def test_an_image_that_both_models_generated_and_one_of_an_unknown_model_are_not_paired_across_them(world: World):
    add_generation(world.store, world.fox, UUID(int=2), world.images["a3"], 2)
    unknown = add_image(world.store, (1, 2, 3))
    add_pair(world.store, world.fox, world.images["a0"], unknown, "import")
    world.store.ingest()
    # a0, a1, a2 with b0, b1
    assert world.pair("across-models")["pairs"] == 6
    assert world.pair("all", where="prompt = 'a fox'")["images"] == 7


@pytest.mark.slow(reason="generates images in several runs")
def test_of_any_strategy_at_most_n_pairs_of_a_prompt_are_kept_and_the_same_ones_again(world: World):
    for strategy, how in STRATEGIES.items():
        scorer = "pickscore" if how.needs_scores else None
        config = PairConfig(pairing=strategy, scorer=scorer, pairs_per_prompt=1)
        before = len(world.pairs())
        pair(config, world.store)
        assert len(world.pairs()) <= before + 1, strategy
        assert pair(config, world.store)["new_pairs"] == 0, strategy


def test_a_limit_samples_all_pairs_instead_of_taking_those_of_the_first_image():
    images = [Candidate(UUID(int=number)) for number in range(10)]
    kept = [pair_up(images, "all", str(seed), 3) for seed in range(20)]
    assert {len(pairs) for pairs in kept} == {3}
    # 9 of 45 pairs have the first image: of 60 drawn about 12
    assert sum(images[0] in both for pairs in kept for both in pairs) < 30
    assert len({tuple(pairs) for pairs in kept}) > 10


# Which images


def test_where_selects_images_by_their_columns(world: World):
    columns = "prompt = 'a fox' and tags->>'style' = 'photo' and model = 'model-a' and seed = 0 and image_index < 3"
    summary = world.pair("all", where=f"{columns} and width = 8 and height = 8 and format = 'png' and round is null")
    assert (summary["images"], summary["pairs"]) == (3, 3)
    assert world.pairs() == named("a0-a1", "a0-a2", "a1-a2")


def test_where_may_ask_other_tables(world: World):
    world.pair("all", where="image_id in (select image_id from scores where score between 2 and 3)")
    assert world.pairs() == named("a2-a3")


def test_model_selects_the_images_of_models(world: World):
    assert world.pair("all", models=("model-b",))["pairs"] == 1
    assert world.pairs() == named("b0-b1")
    assert world.pair("across-models", models=("model-a", "model-b"))["pairs"] == 8


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("modell = 'a'", "modell"),
        ("true) or (true", "syntax error"),
        ("1=1; drop table pairs", "it must be one expression"),
        ("exists (from read_csv('x.csv'))", "read_csv"),
        ("exists (from 'x.csv')", "x.csv"),
        ("random() < 0.5", "random could differ each time"),
        ("prompt = 'nothing'", None),
    ],
)
def test_a_condition_that_cannot_be_used_ends_in_one_line_and_adds_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, message: str | None
):
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text("a\n1\n")
    ended = RUNNER.invoke(app, ["pair", "--store", str(world.store.path), "--where", where])
    assert ended.exit_code == 2, ended.output
    assert len(ended.stderr.splitlines()) == 1
    if message is None:
        assert f"--where selects no images in {world.store.path}; relax --where" in ended.stderr
    else:
        assert "cannot be used" in ended.stderr
        assert message in ended.stderr
    assert world.store.rows("select count(*) from pairs") == [(0,)]


# Scorers


def test_a_scorer_with_scores_of_two_revisions_must_be_named_with_one(world: World):
    add_scores(
        world.store, "pickscore@2", {(world.fox, world.images[name]): -score for name, score in FOX_SCORES.items()}
    )
    world.store.ingest()
    with pytest.raises(UsageError, match="several revisions of pickscore; give --scorer pickscore@1 or pickscore@2"):
        world.pair("close", scorer="pickscore")
    world.pair("close", scorer="pickscore@2", pairs_per_prompt=1)
    # the negated scores have the same differences; of the two smallest, the pair with the lower scores: -4 and -3.5
    assert world.pairs() == named("b1-a1")
    with pytest.raises(UsageError, match="unknown scorer 'clip'; choose from pickscore@1, pickscore@2"):
        world.pair("close", scorer="clip")


def test_a_store_without_scores_says_how_to_get_some(store: PairStore):
    add_generation(store, add_prompt(store, "a fox"), UUID(int=1), add_image(store, (1, 2, 3)))
    store.ingest()
    with pytest.raises(UsageError, match=r"no scores by clip in .*; `prefloop relabel --scorer clip"):
        pair(PairConfig(pairing="close", scorer="clip"), store)


def test_scores_that_are_not_finite_are_left_out(world: World):
    scores = {"a0": float("nan"), "a1": float("inf"), "a2": 1.0, "a3": 2.0}
    add_scores(world.store, "odd@1", {(world.fox, world.images[name]): score for name, score in scores.items()})
    world.store.ingest()
    summary = world.pair("best-worst", scorer="odd")
    # of 8 images only a2 and a3 have a finite score
    assert (summary["images"], summary["unscored_images"]) == (2, 6)
    assert world.pairs() == named("a2-a3")


# Evaluations


@pytest.mark.parametrize("known_by", ["pair", "evaluation", "run"])
def test_images_of_prompts_that_an_evaluation_used_are_left_out_unless_asked_for(world: World, known_by: str):
    if known_by == "pair":
        add_pair(world.store, world.cat, world.images["c0"], world.images["c1"], "eval")
    elif known_by == "evaluation":  # its pair was there before, so it is not a pair of the evaluation
        query = "select generation_id from generations where prompt_id = ?"
        add_evaluation(world.store, {identity: (0, {}) for (identity,) in world.store.rows(query, [world.cat])})
    else:  # an evaluation that was killed before it paired its images
        with run(world.store, "eval", {}) as eval_run:
            add_generation(world.store, world.cat, UUID(int=2), add_image(world.store, (9, 9, 9)), 0, eval_run.run_id)
    world.store.ingest()
    extra = int(known_by == "run")
    summary = world.pair("adjacent")
    assert (summary["prompts"], summary["pairs"], summary["new_pairs"]) == (1, 5, 5)
    assert (summary["eval_images"], summary["eval_prompts"]) == (2 + extra, 1)
    rows = "select count(*) from pairs where prompt_id = ? and source = 'pair'"
    assert world.store.rows(rows, [world.cat]) == [(0,)]

    asked = world.pair("all", include_eval=True)
    assert (asked["prompts"], asked["eval_images"]) == (2, 0)
    # the pair of the evaluation stays one: only what it did not compare is new
    assert world.store.rows(rows, [world.cat]) == [({"pair": 0, "evaluation": 1, "run": 3}[known_by],)]


def test_a_condition_cannot_bring_back_the_images_of_an_evaluation(world: World):
    add_pair(world.store, world.cat, world.images["c0"], world.images["c1"], "eval")
    world.store.ingest()
    assert world.pair("all", where="true or prompt = 'a cat'")["prompts"] == 1


# Again, and after a kill


def test_the_same_call_again_adds_nothing_and_another_strategy_only_what_is_new(world: World):
    assert world.pair("adjacent")["new_pairs"] == 6
    before = logical_hashes(world.store)["pairs"]
    again = world.pair("adjacent")
    assert (again["pairs"], again["new_pairs"]) == (6, 0)
    assert logical_hashes(world.store)["pairs"] == before
    everything = world.pair("all")
    assert (everything["pairs"], everything["new_pairs"]) == (16, 10)
    assert world.store.rows("select kind, status from runs where kind = 'pair'") == [("pair", "done")] * 3


def test_a_dry_run_counts_the_same_pairs_and_writes_nothing(world: World):
    world.pair("adjacent")
    before = logical_hashes(world.store)
    planned = plan(PairConfig(pairing="all"), world.store)
    assert (planned["pairs"], planned["new_pairs"]) == (16, 10)
    assert logical_hashes(world.store) == before
    assert world.pair("all") == planned


def test_an_interrupted_run_continues_with_the_pairs_that_it_lacks(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("prefloop.generate.pair_stage.ROWS", 1)  # a part for each prompt
    append_new = PairStore.append_new

    def append_then_signal(self: PairStore, table: str, rows: Any) -> int:
        added = append_new(self, table, rows)
        signal.raise_signal(signal.SIGTERM)
        return added

    with monkeypatch.context() as once:
        once.setattr(PairStore, "append_new", append_then_signal)
        with pytest.raises(Interrupted, match=r"pairs are in .*; the same command continues from here"):
            world.pair("all")
    store = PairStore.open(world.store.path)
    ((n,),) = store.rows("select count(*) from pairs")
    assert n in (1, 15)  # one of the two prompts
    assert store.rows("select status from runs where kind = 'pair'") == [("interrupted",)]
    assert world.pair("all")["new_pairs"] == 16 - n
    assert check(world.store) == []


# The command


def test_the_command_says_how_many_what_was_left_out_and_what_is_next(world: World):
    add_pair(world.store, world.cat, world.images["c0"], world.images["c1"], "eval")
    world.store.ingest()
    words = ["pair", "--store", str(world.store.path), "--pairing", "adjacent"]
    ended = RUNNER.invoke(app, [*words, "--dry-run"])
    assert ended.stdout == "6 images of 1 prompt: 5 pairs, 5 of them new; nothing was added\n"
    ended = RUNNER.invoke(app, words)
    assert ended.stdout.splitlines() == [
        f"6 images of 1 prompt: 5 pairs, 5 of them new; store: {world.store.path}",
        f"next: `prefloop label --store {world.store.path}` for people, or `prefloop relabel --store {world.store.path}` for a scorer",
    ]
    assert "left out: 2 images of 1 prompt that an evaluation used; --include-eval pairs them too" in ended.stderr
    ended = RUNNER.invoke(app, words)
    assert ended.stdout.startswith("nothing to do: 6 images of 1 prompt: 5 pairs, 0 of them new")
    ended = RUNNER.invoke(app, [*words, "--json"])
    summary = json.loads(ended.stdout)
    assert {name: summary[name] for name in ("images", "prompts", "pairs", "new_pairs", "eval_images")} == {
        "images": 6,
        "prompts": 1,
        "pairs": 5,
        "new_pairs": 0,
        "eval_images": 2,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--pairing best",
            "unknown pairing 'best'; choose from all, adjacent, random, best-worst, close, across-models",
        ),
        ("--pairing close", "--pairing close compares scores; name the scorer with --scorer"),
        ("--scorer pickscore", "--pairing all compares no scores; leave out --scorer"),
        ("--pairing across-models --model model-a", "needs two models; name another --model"),
        ("--model model-a --model model-a", "a model is named twice"),
        ("--model model-c", "unknown model 'model-c'; choose from model-a, model-b"),
        ("--pairs-per-prompt 0", "pairs-per-prompt must be positive, got 0"),
        ("--seed -1", "seed must be between 0"),
        ("--where ''", "where must be an SQL condition, got an empty text"),
    ],
)
def test_a_wrong_option_ends_in_one_line(world: World, options: str, message: str):
    ended = RUNNER.invoke(app, ["pair", "--store", str(world.store.path), *shlex.split(options)])
    assert ended.exit_code == 2, ended.output
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert world.store.rows("select count(*) from pairs") == [(0,)]


def test_a_store_without_images_says_where_they_come_from(store: PairStore, tmp_path: Path):
    ended = RUNNER.invoke(app, ["pair", "--store", str(store.path)])
    assert ended.exit_code == 2
    assert "there are no images in" in ended.stderr
    assert "`prefloop store import`" in ended.stderr
    ended = RUNNER.invoke(app, ["pair", "--store", str(tmp_path / "gone")])
    assert (ended.exit_code, "no store at" in ended.stderr) == (1, True)
    assert not (tmp_path / "gone").exists()


def test_after_a_kill_the_pairs_whose_part_is_in_the_journal_are_not_added_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As a kill leaves it: one prompt's pairs are in the journal, not in the tables, and the run has no end."""
    whole = PairStore(shutil.copytree(world.store.path, tmp_path / "whole"))
    monkeypatch.setattr("prefloop.generate.pair_stage.ROWS", 1)  # a part for each prompt
    pair(PairConfig(), whole)
    first, second = sorted(whole.journal.glob("*-pairs-*"))
    n_first = pq.read_metadata(first).num_rows
    assert {n_first, pq.read_metadata(second).num_rows} == {1, 15}
    shutil.copy(first, world.store.journal)
    ended = RUNNER.invoke(app, ["pair", "--store", str(world.store.path)])
    assert f"16 pairs, {16 - n_first} of them new" in ended.stdout
    query = "select pair_id, image_a, image_b from pairs order by all"
    assert world.store.rows(query) == whole.rows(query)


# Training


def test_what_is_paired_and_labelled_can_be_trained_on(world: World):
    world.pair("best-worst", scorer="pickscore")
    ((pair_id, image_a),) = world.store.rows("select pair_id, image_a from pairs")
    add_labeler(world.store, "human:me")
    add_label(world.store, pair_id, "human:me", "a" if image_a == world.images["b0"] else "b")
    world.store.ingest()
    ((prompt, chosen, rejected),) = world.store.rows("select prompt, chosen, rejected from training_preferences")
    assert (prompt, chosen, rejected) == ("a fox", world.images["b0"], world.images["a0"])
