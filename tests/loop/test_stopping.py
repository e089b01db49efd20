"""When a loop ends, and the reason it gives."""

from dataclasses import replace

from prefloop.loop.config import LoopConfig
from prefloop.loop.guards import GUARDS
from prefloop.loop.stopping import hacked, moved_images, no_progress, stop_reason
from rounds import BETTER, SAME, WORSE, evaluation, finished

CONFIG = LoopConfig(rounds=4)


def test_a_loop_ends_after_its_last_round():
    rounds = [finished(number) for number in range(1, 5)]
    assert stop_reason(rounds[:3], CONFIG) is None
    assert stop_reason(rounds, CONFIG) == "all 4 rounds are done"
    assert stop_reason(rounds[:1], LoopConfig(rounds=1)) == "the round is done"


def test_a_loop_ends_when_the_interval_against_the_round_before_contains_one_half_twice_in_a_row():
    better, same = finished(1), finished(2, held_out=SAME)
    assert stop_reason([better, same], CONFIG) is None
    reason = stop_reason([better, same, replace(same, number=3)], CONFIG)
    assert reason is not None
    assert reason.startswith("rounds 2 and 3 cannot be told apart from the round before")
    assert stop_reason([same, replace(better, number=2), replace(same, number=3)], CONFIG) is None  # not in a row
    assert stop_reason([same, replace(same, number=2)], LoopConfig(rounds=4, patience=0)) is None
    assert stop_reason([same], LoopConfig(rounds=4, patience=1)) is not None


def test_the_base_does_not_stand_in_for_the_round_before():
    against_base = finished(3, held_out=BETTER)
    result = replace(against_base, against_previous=evaluation(SAME, {"hps": SAME}))
    assert no_progress(result)


def test_one_judge_whose_interval_excludes_one_half_is_progress_or_decline():
    assert no_progress(finished(held_out={"hps": SAME, "clip": SAME}))
    assert not no_progress(finished(held_out={"hps": SAME, "clip": BETTER}))
    assert not no_progress(finished(held_out={"hps": SAME, "clip": WORSE}))


def test_only_the_scorers_that_made_no_label_tell_progress():
    assert no_progress(finished(labels=BETTER, held_out=SAME))


def test_an_interval_that_ends_at_one_half_contains_it():
    assert no_progress(finished(held_out=(0.55, 0.5, 0.6)))
    assert not no_progress(finished(held_out=(0.55, 0.5001, 0.6)))


def test_without_intervals_nothing_is_known_of_progress():
    few = finished(held_out=(0.5, None, None), labels=(0.5, None, None))  # type: ignore[arg-type]  # below 10 prompts
    assert not no_progress(few)
    assert stop_reason([few, replace(few, number=2)], CONFIG) is None


def test_reward_hacking_is_a_held_out_scorer_that_falls_while_the_training_scorer_rises():
    reason = hacked(finished(2, labels=BETTER, held_out={"hps": SAME, "clip": WORSE}))
    assert reason == (
        "reward hacking in round 2: pickscore, which made the labels, prefers it to the round before (60.0 %), but clip, "
        "which made none, does not (42.0 %)"
    )
    assert hacked(finished(labels=SAME, held_out=WORSE)) is None  # training failed; nothing was hacked
    assert hacked(finished(labels=BETTER, held_out=SAME)) is None
    assert hacked(finished(labels=BETTER, held_out=BETTER)) is None


def test_a_hacked_round_ends_the_loop_unless_guards_are_off():
    result = finished(1, labels=BETTER, held_out=WORSE)
    reason = stop_reason([result], CONFIG)
    assert reason is not None
    assert reason.startswith("reward hacking in round 1")
    assert stop_reason([result], LoopConfig(rounds=4, guards=False)) is None


def test_images_that_leave_the_bounds_of_a_guard_end_the_loop_and_are_named():
    _, high = GUARDS["saturation"].bounds
    inside, outside = (finished(2, guards={"saturation": 0.2 * high * change}) for change in (0.999, 1.001))
    assert moved_images(inside) is None
    assert stop_reason([outside], CONFIG) == (
        "the images of round 2 have moved too far: saturation is 1.602 times the base's, outside of 0.5 to 1.6"
    )
