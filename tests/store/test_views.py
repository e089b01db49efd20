"""What the views say: models of images and pairs, scores of pairs, and what training may use."""

from uuid import UUID

import pyarrow as pa
import pytest
from content import (
    add_generation,
    add_image,
    add_label,
    add_labeler,
    add_pair,
    add_prompt,
    add_scores,
    fill,
)
from prefloop.store import PairStore, prompt_id
from prefloop.store.exporters.config import ExportConfig
from prefloop.store.exporters.select import selected_labels

M, N = UUID(int=1), UUID(int=2)


@pytest.fixture
def modeled(store: PairStore) -> PairStore:
    """A pair of the models "m" (image_a) and "n" (image_b), labeled by me, and the same images under another prompt."""
    store.append("models", [{"model_id": model, "name": name, "config": "{}"} for model, name in ((M, "m"), (N, "n"))])
    add_labeler(store, "me")
    first, second = sorted(add_image(store, (value, 0, 0)) for value in (10, 20))
    for text, choice in (("one", "a"), ("other", "b")):
        prompt = add_prompt(store, text)
        add_label(store, add_pair(store, prompt, first, second), "me", choice, p_a=0.75)
    add_generation(store, prompt_id("one"), M, first)
    add_generation(store, prompt_id("one"), N, second)
    store.ingest()
    return store


def models_of_preferences(store: PairStore) -> dict[str, list]:
    rows = store.rows("select prompt, chosen_model, rejected_model from preferences where labeler = 'me'")
    return {prompt: models for prompt, *models in rows}


def test_preferences_name_the_models_of_a_pair_under_its_prompt_and_null_if_unknown(modeled: PairStore):
    assert models_of_preferences(modeled) == {"one": ["m", "n"], "other": [None, None]}
    (image_b,) = modeled.rows("select distinct image_b from pairs")[0]
    add_generation(modeled, prompt_id("other"), N, image_b, index=1)
    modeled.append("generations", [generation(51, "other", M, image_b, 2)])
    modeled.ingest()
    # image_b is chosen under "other"; both models generated it there, and "m" sorts first
    assert models_of_preferences(modeled) == {"one": ["m", "n"], "other": ["m", None]}
    assert modeled.rows("select count(*) from preferences") == [(2,)]


def generation(number: int, prompt: str, model: UUID, image: UUID, index: int) -> dict:
    row = {"prompt_id": prompt_id(prompt), "model_id": model, "image_id": image, "seed": 0, "image_index": index}
    return {"generation_id": UUID(int=number), "sampling": "{}"} | row


def test_an_image_that_a_model_generated_twice_counts_once(modeled: PairStore):
    before = modeled.rows("select * from image_models order by all"), modeled.rows("select * from win_rates")
    (image,) = modeled.rows("select distinct image_a from pairs")[0]
    modeled.append("generations", [generation(50, "one", M, image, 1)])
    modeled.ingest()
    assert (modeled.rows("select * from image_models order by all"), modeled.rows("select * from win_rates")) == before


def test_export_takes_the_same_condition_on_models_as_preferences(modeled: PairStore):
    config = ExportConfig(
        output_dir=modeled.path.parent / "out", format="csv", where="chosen_model = 'm' and rejected_model = 'n'"
    )
    assert selected_labels(modeled, config)["prompt"].to_pylist() == ["one"]


def test_preferences_hold_decided_pairs_and_those_for_training_no_evaluation(store: PairStore):
    prompt, colours = add_prompt(store, "one"), iter(range(1, 100))
    add_labeler(store, "me")

    def pair(source: str) -> UUID:
        first, second = (add_image(store, (0, next(colours), 2)) for _ in range(2))
        return add_pair(store, prompt, first, second, source)

    decided = {}
    for source in ("generate", "pair", "import", "eval"):
        for choice in ("a", "b", "tie", "skip"):
            identity = pair(source)
            add_label(store, identity, "me", choice)
            if choice in ("a", "b"):
                decided[identity] = source
    changed = pair("generate")  # decided at first, but the label that counts is the latest
    add_label(store, changed, "me", "a")
    add_label(store, changed, "me", "tie", revision=1)
    store.ingest()
    assert len(decided) == 8
    assert dict(store.rows("select pair_id, source from preferences")) == decided
    trained = {identity: source for identity, source in decided.items() if source != "eval"}
    assert dict(store.rows("select pair_id, source from training_preferences")) == trained
    assert store.rows("select distinct split = 'eval' from preferences where source = 'eval'") == [(True,)]


def test_training_preferences_have_no_evaluation_pair(modeled: PairStore):
    images = [add_image(modeled, (value, 0, 1)) for value in (10, 20)]
    add_label(modeled, add_pair(modeled, prompt_id("one"), *images, source="eval"), "me", "a")
    modeled.ingest()
    assert modeled.rows("select count(*) from preferences") == [(3,)]
    assert modeled.rows("select distinct source from training_preferences") == [("generate",)]
    assert modeled.rows("select count(*) from training_preferences") == [(2,)]


def test_pair_scores_have_pairs_whose_images_a_scorer_has_both_scored(modeled: PairStore):
    ((prompt, a, b),) = modeled.rows(
        "select prompt_id, image_a, image_b from pairs where prompt_id = ?", [prompt_id("one")]
    )
    add_scores(modeled, "red_1@1", {(prompt, a): 1.0, (prompt, b): 2.0})
    add_scores(modeled, "redx1@1", {(prompt, a): 3.0})
    add_scores(modeled, "redy1@1", {(prompt, a): 4.0, (prompt, b): 5.0})
    modeled.ingest()
    rows = "select scorer, score_a, score_b, source from {} order by scorer"
    both = [("red_1@1", 1.0, 2.0, "generate"), ("redy1@1", 4.0, 5.0, "generate")]
    assert modeled.rows(rows.format("pair_scores")) == both
    # the _ of a name is not a wildcard
    assert modeled.rows(rows.format("score_pairs('red_1')")) == both[:1]


def test_only_rows_with_new_keys_are_appended(store: PairStore):
    fill(store, n_prompts=2)
    pairs = store.sql("select * from pairs", as_ids=True)
    row = {"prompt_id": prompt_id("prompt 0"), "image_a": UUID(int=1), "image_b": UUID(int=2), "source": "eval"}
    known = {"pair_id": UUID(bytes=pairs["pair_id"].chunk(0).storage[0].as_py())}
    assert store.append_new("pairs", [row | known]) == 0
    assert store.append_new("pairs", [row | known, row | {"pair_id": UUID(int=9)}]) == 1
    assert store.ingest() == 1
    assert store.append_new("pairs", []) == 0


def test_a_prompt_that_is_added_again_keeps_its_tags(store: PairStore):
    add_prompt(store, "one", tag="b")
    store.ingest()
    store.add_prompts([("one", {"tag": "a"}), ("two", {})])
    store.ingest()
    assert store.rows("select prompt, tags from prompts order by prompt") == [("one", '{"tag":"b"}'), ("two", "{}")]


def test_prompts_are_read_by_their_ids(store: PairStore):
    ids = [add_prompt(store, text).bytes for text in ("one", "two", "three")]
    store.ingest()
    wanted = pa.chunked_array([pa.array([ids[0], ids[2], ids[0]], pa.binary(16))])
    expected = {ids[0]: "one", ids[2]: "three"}
    assert store.prompts_by_id(wanted) == expected
    assert store.prompts_by_id(wanted.cast(pa.uuid())) == expected
