"""The temperature of the soft labels: the scorer's own, given, or fitted on choices."""

import math
from dataclasses import replace

import numpy as np
import pytest
from content import add_image, add_label, add_labeler, add_pair, add_prompt, fill
from prefloop.relabel.stage import relabel
from prefloop.relabel.temperature import fit_temperature
from prefloop.store import PairStore, UsageError
from test_relabel import REDNESS


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rule", ["single", "weighted"])
def test_the_smallest_temperature_gives_certain_labels_without_a_warning(store: PairStore, rule: str):
    fill(store)
    relabel(replace(REDNESS, rule=rule, temperature=1e-320), store)
    ((p_chosen, margin),) = store.rows("select distinct p_chosen, margin > 0 and isfinite(margin) from preferences")
    assert (p_chosen, margin) == (1.0, True)


def test_a_temperature_is_fitted_on_human_choices(store: PairStore):
    """In 7 of 10 pairs, whose scores differ by 100, the redder image was chosen."""
    pairs = []
    for number in range(10):
        prompt = add_prompt(store, f"prompt {number}")
        dim, red = add_image(store, (50, 0, number)), add_image(store, (150, 0, number))
        pairs.append((add_pair(store, prompt, dim, red), red < dim))
    add_labeler(store, "human:me")
    for number, (pair, red_is_a) in enumerate(pairs):
        add_label(store, pair, "human:me", "a" if red_is_a == (number < 7) else "b")
    store.ingest()
    relabel(REDNESS, store)
    summary = relabel(replace(REDNESS, fit_temperature="human:me", labeler="sure"), store)
    # of 12, (7·11 + 3·1) / 12 = 6.667 of 10 by Platt's targets: logit ln 2 at a difference of 100
    assert summary["temperatures"]["redness"] == pytest.approx(100 / math.log(2), rel=1e-6)
    rows = store.rows("select distinct round(p_chosen, 5) from preferences where labeler = 'sure'")
    assert rows == [(pytest.approx(2 / 3, abs=1e-5),)]
    assert summary["scored"] == {"redness": 0}


def test_temperature_sets_the_soft_label(store: PairStore):
    prompt = add_prompt(store, "one")
    add_pair(store, prompt, add_image(store, (50, 0, 0)), add_image(store, (150, 0, 0)))
    store.ingest()
    assert relabel(replace(REDNESS, temperature=200.0), store)["temperatures"] == {"redness": 200.0}
    # 100 apart: 1 / (1 + e^-0.5)
    assert store.rows("select p_chosen from preferences") == [(pytest.approx(0.622459, abs=1e-5),)]
    with pytest.raises(UsageError, match="--labeler another name"):
        relabel(REDNESS, store)


@pytest.mark.parametrize(
    ("labeler", "message"),
    [
        (
            "human:you",
            "has no labels by 'human:you'; `prefloop label --labeler you --store .*; there are labels by human:me",
        ),
        ("human:me", "has decided 2 pairs"),
    ],
)
def test_a_temperature_needs_labels(store: PairStore, labeler: str, message: str):
    add_labeler(store, "human:me")
    for pair in fill(store, 2):
        add_label(store, pair, "human:me", "a")
    store.ingest()
    with pytest.raises(UsageError, match=message):
        relabel(replace(REDNESS, fit_temperature=labeler), store)


def test_choices_against_the_scores_have_no_temperature():
    with pytest.raises(ValueError, match="do not agree with the scores"):
        fit_temperature(np.array([1.0, 2.0]), np.array([0.0, 0.0]))
    # perfectly predicted: finite, and lower with more choices
    few, many = (fit_temperature(np.ones(n), np.ones(n)) for n in (4, 40))
    assert 0 < many < few < 1
    assert few == pytest.approx(1 / math.log(5))  # the target is 5 of 6
