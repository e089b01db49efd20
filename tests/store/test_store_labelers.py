"""A labeler without labels to train on: the message names those that have some, and how a person labels."""

import pytest
from content import add_image, add_label, add_labeler, add_pair, add_prompt, fill
from prefloop.cli import app
from prefloop.store import PairStore, UsageError
from prefloop.store.labelers import labelers_to_train_on, labelers_with_labels, require_training_labels
from typer.testing import CliRunner


@pytest.fixture
def judged(store: PairStore) -> PairStore:
    """pickscore labels a pair to train on, eval:hps@1 and human:ann one of an evaluation, silent nothing."""
    (pair,) = fill(store, 1)
    of_eval = add_pair(store, add_prompt(store, "x"), add_image(store, (9, 0, 0)), add_image(store, (0, 9, 0)), "eval")
    for labeler, of in (("pickscore", pair), ("eval:hps@1", of_eval), ("human:ann", of_eval)):
        add_labeler(store, labeler)
        add_label(store, of, labeler, "a")
    add_labeler(store, "silent")
    store.ingest()
    return store


def test_labelers_of_evaluation_pairs_are_not_among_those_to_train_on(judged: PairStore):
    assert labelers_to_train_on(judged) == ["pickscore"]
    assert labelers_with_labels(judged) == ["human:ann", "pickscore", "eval:hps@1"]


@pytest.mark.parametrize(
    ("labeler", "problem", "named"),
    [
        ("nobody", "unknown labeler 'nobody'", ""),
        ("silent", "the labeler 'silent' has no labels", ""),
        ("eval:hps@1", "eval:hps@1 has labels only of evaluation pairs, which are never trained on or exported", ""),
        ("human:me", "unknown labeler 'human:me'", "me"),
        ("human:ann", "human:ann has labels only of evaluation pairs, which are never trained on or exported", "ann"),
    ],
)
def test_train_and_export_say_whose_labels_can_be_used(judged: PairStore, labeler: str, problem: str, named: str):
    page = f"`prefloop label --labeler {named} --store {judged.path}` opens a page to label on, or " if named else ""
    expected = f"{problem}; {page}choose from pickscore"
    for words in (["train", "--output-dir", "out"], ["store", "export", "--output-dir", "out"]):
        ended = CliRunner().invoke(app, [*words, "--labeler", labeler, "--store", str(judged.path)])
        assert (ended.exit_code, ended.stderr) == (2, f"prefloop: {expected}\n")
    require_training_labels(judged, "pickscore")


def test_scorers_are_measured_by_a_person_only_after_they_labelled(judged: PairStore):
    words = ["scorers", "quality", "--labeler", "human:me", "--store", str(judged.path)]
    ended = CliRunner().invoke(app, words)
    assert f"; `prefloop label --labeler me --store {judged.path}` opens a page to label on; there are" in ended.stderr


def test_a_store_without_labels_says_what_makes_some(store: PairStore):
    fill(store, 1)
    with pytest.raises(UsageError, match="unknown labeler 'me'; `prefloop relabel` makes labels"):
        require_training_labels(store, "me")
