"""The round that is kept: chosen on one half of the prompts, reported on the other."""

import pytest
from prefloop.core.errors import BadDataError
from prefloop.eval.best import JudgedPrompt, choosing, held_out
from prefloop.loop.best import best_round
from rounds import BETTER, finished, judged

PROMPTS = [f"prompt {n}" for n in range(40)]
FIRST = {each.prompt for each in choosing([judged(prompt, 0.5) for prompt in PROMPTS])}


def test_the_two_halves_are_equal_and_do_not_depend_on_the_order():
    assert len(FIRST) == 20
    backwards = choosing([judged(prompt, 0.5) for prompt in reversed(PROMPTS)])
    assert {each.prompt for each in backwards} == FIRST


def test_the_round_is_chosen_on_one_half_and_reported_on_the_other():
    # round 1 wins 60 % on the choosing half and 90 % on the other; round 2 80 % and 30 %
    one = [judged(prompt, 0.6 if prompt in FIRST else 0.9) for prompt in PROMPTS]
    two = [judged(prompt, 0.8 if prompt in FIRST else 0.3) for prompt in PROMPTS]
    best = best_round([finished(1, prompts=one), finished(2, prompts=two)])
    assert best.number == 2
    assert best.chosen_by == ["hps"]
    assert best.chosen_with == pytest.approx(0.8)
    assert best.beats_base
    assert best.reported["hps"].win_rate.value == pytest.approx(0.3)
    assert best.reported["hps"].n_prompts == 20
    assert best.reported["hps"].diff.value == pytest.approx(2 * 0.3 - 1)


def test_scorers_that_made_labels_do_not_choose():
    def both(labels: float, held: float) -> list[JudgedPrompt]:
        scorers = {"pickscore": (labels, 0.0, 1.0), "hps": (held, 0.0, 1.0)}
        return [JudgedPrompt(prompt=prompt, scorers=scorers) for prompt in PROMPTS]

    rounds = [finished(1, prompts=both(0.6, 0.7)), finished(2, prompts=both(0.9, 0.6))]
    assert best_round(rounds).number == 1
    assert set(best_round(rounds).reported) == {"pickscore", "hps"}


def test_several_judges_choose_by_the_mean_of_their_win_rates():
    def both(hps: float, clip: float) -> list[JudgedPrompt]:
        return [
            JudgedPrompt(prompt=prompt, scorers={"hps": (hps, 0.0, 1.0), "clip": (clip, 0.0, 1.0)})
            for prompt in PROMPTS
        ]

    judges = {"hps": BETTER, "clip": BETTER}
    rounds = [
        finished(1, held_out=judges, prompts=both(0.9, 0.5)),
        finished(2, held_out=judges, prompts=both(0.7, 0.6)),
    ]
    best = best_round(rounds)
    assert (best.number, best.chosen_with) == (1, pytest.approx(0.7))
    assert set(best.chosen_by) == {"hps", "clip"}


def test_a_scorer_without_scores_has_no_result():
    assert held_out([judged("a", 1.0)], "clip") is None


def test_a_judge_without_scores_in_one_round_does_not_choose():
    # by hps, which round 1 lacks on the choosing half, nothing can be said of round 1: clip alone chooses
    def prompts(**wins: float) -> list[JudgedPrompt]:
        return [
            JudgedPrompt(prompt=prompt, scorers={name: (win, 0.0, 1.0) for name, win in wins.items()})
            for prompt in PROMPTS
        ]

    judges = {"hps": BETTER, "clip": BETTER}
    best = best_round(
        [
            finished(1, held_out=judges, prompts=prompts(clip=0.5)),
            finished(2, held_out=judges, prompts=prompts(clip=0.6, hps=0.1)),
        ]
    )
    assert (best.number, best.chosen_by, best.chosen_with) == (2, ["clip"], pytest.approx(0.6))
    labels_only = [
        finished(1, prompts=prompts(pickscore=0.7)),
        finished(2, prompts=prompts(pickscore=0.6, hps=0.9)),
    ]
    assert (best_round(labels_only).number, best_round(labels_only).chosen_by) == (1, ["pickscore"])
    with pytest.raises(BadDataError, match="no scorer has a finite score in every round"):
        best_round([finished(1, prompts=prompts(hps=0.7)), finished(2, prompts=prompts(pickscore=0.6))])


def test_a_single_round_is_reported_on_all_prompts_since_nothing_was_chosen():
    best = best_round([finished(1, prompts=[judged(prompt, 0.6) for prompt in PROMPTS])])
    assert (best.number, best.reported["hps"].n_prompts) == (1, len(PROMPTS))


def test_of_equal_rounds_the_first_is_kept_and_one_prompt_leaves_nothing_to_report():
    rounds = [finished(number, prompts=[judged("a", 0.5)]) for number in (1, 2)]
    best = best_round(rounds)
    assert (best.number, best.chosen_with, best.reported) == (1, 0.5, {})
    assert not best.beats_base
