"""The answer in one sentence, from the judges that made no labels."""

from typing import Any

import pytest
from prefloop.core.text import short_names
from prefloop.eval.verdict import headline, trained_prompts, verdict

NAMES = {"tuned": "tuned", "base": "base"}
UP, DOWN, OPEN, NONE = (0.6, 0.55, 0.65), (0.4, 0.35, 0.45), (0.52, 0.48, 0.56), (0.9, None, None)


def compared(in_sample: str = "", **judges: tuple) -> dict[str, Any]:
    rows = {
        name: {"win_rate": rate, "win_rate_low": low, "win_rate_high": high, "in_sample": name == in_sample}
        for name, (rate, low, high) in judges.items()
    }
    return {"model": "tuned", "baseline": "base", "scorers": rows}


@pytest.mark.parametrize(
    ("judges", "expected"),
    [
        ({"hps": UP}, "tuned is better than base: it wins 60.0 % (55.0 to 65.0) by hps."),
        (
            {"hps": DOWN, "clip": OPEN},
            "tuned is worse than base: it wins 40.0 % (35.0 to 45.0) by hps; undecided: 52.0 % (48.0 to 56.0) by clip.",
        ),
        (
            {"hps": UP, "clip": DOWN, "human": UP},
            "The judges disagree: tuned wins over base 60.0 % (55.0 to 65.0) by hps and 60.0 % (55.0 to 65.0) by human, "
            "but 40.0 % (35.0 to 45.0) by clip.",
        ),
        ({"hps": OPEN}, "tuned and base cannot be told apart: it wins 52.0 % (48.0 to 56.0) by hps."),
        (
            {"hps": OPEN, "pickscore": UP, "in_sample": "pickscore"},
            "tuned and base cannot be told apart: it wins 52.0 % (48.0 to 56.0) by hps.",
        ),
        (
            {"pickscore": UP, "in_sample": "pickscore"},
            "Whether tuned is better than base is not known: labels by every judge trained it.",
        ),
        ({"hps": NONE}, "Whether tuned is better than base is not known: an interval needs at least 10 prompts."),
        ({}, "No judge has a result yet."),
    ],
)
def test_the_answer_is_what_the_independent_judges_say(judges: dict, expected: str):
    assert verdict(compared(**judges), NAMES) == expected


def test_the_oracle_says_how_many_images_satisfy_their_prompt():
    result = compared(oracle=UP)
    result["scorers"]["oracle"] |= {"base_mean": 0.411, "tuned_mean": 0.7}
    assert verdict(result, NAMES) == (
        "tuned is better than base: it wins 60.0 % (55.0 to 65.0) by oracle. 70.0 % instead of 41.1 % of the images show everything "
        "their prompt asks for, by the oracle."
    )


def test_two_equal_percentages_are_not_said_to_replace_each_other():
    result = compared(hps=OPEN, oracle=OPEN)
    result["scorers"]["oracle"] |= {"base_mean": 0.2502, "tuned_mean": 0.2498}  # both 25.0 %
    assert verdict(result, NAMES).endswith(
        " 25.0 % of the images of either model show everything their prompt asks for, by the oracle."
    )


def test_the_headline_is_every_named_model_against_its_baseline():
    def pair(model: str, baseline: str) -> dict:
        return {"model": model, "baseline": baseline}

    models = [{"model": "a", "baseline": "c"}, {"model": "b", "baseline": "c"}, {"model": "c", "baseline": None}]
    result = pair("a", "c") | {"models": models, "other_comparisons": [pair("b", "c"), pair("a", "b")]}
    assert [c["model"] for c in headline(result)] == ["a", "b"]
    for place in models:
        place["baseline"] = None
    assert headline(result) == [result]


def test_names_lose_their_folders_unless_that_makes_two_the_same():
    assert short_names(["out/a", "out/b", "shapes"]) == {"out/a": "a", "out/b": "b", "shapes": "shapes"}
    assert short_names(["x/a", "y/a", "z/b"]) == {"x/a": "x/a", "y/a": "y/a", "z/b": "b"}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([0], "the tuned model was trained on none of these prompts"),
        ([3], "the tuned model was trained on 3 of these prompts"),
        ([0, 0, 0], "none of the tuned models was trained on these prompts"),
        ([0, 3], "a was trained on none of these prompts; b was trained on 3 of these prompts"),
        (
            [0, None],
            "a was trained on none of these prompts; which of these prompts b was trained on is not known",
        ),
    ],
)
def test_prompts_that_no_model_was_trained_on_are_told_once(counts: list[int | None], expected: str):
    comparisons = [{"model": model, "n_trained_prompts": n} for model, n in zip("abc", counts, strict=False)]
    names = {"a": "the tuned model"} if len(counts) == 1 else {"a": "a", "b": "b", "c": "c"}
    assert trained_prompts(comparisons, names) == expected
