"""Which prompts a round draws."""

from collections import Counter

import pytest
from prefloop.generate.prompts import Prompt
from prefloop.loop.prompts import prompts_of_round

PROMPTS = [Prompt(f"prompt {n}") for n in range(10)]


def texts(number: int, per_round: int | None, seed: int = 0) -> list[str]:
    return [prompt.text for prompt in prompts_of_round(PROMPTS, number, per_round, seed)]


@pytest.mark.parametrize("per_round", [1, 3, 4, 7, 9])
def test_no_prompt_comes_again_before_all_were_used_and_none_twice_in_a_round(per_round: int):
    rounds = [texts(number, per_round) for number in range(1, 31)]
    assert all(len(set(each)) == per_round for each in rounds)
    counts = Counter[str]()
    for each in rounds:
        counts.update(each)
        used = [counts[prompt.text] for prompt in PROMPTS]
        assert (
            max(used) - min(used) <= 1 or per_round > len(PROMPTS) // 2
        )  # a round that meets itself postpones prompts
        assert max(used) - min(used) <= 2


def test_a_set_that_one_round_uses_up_keeps_its_order():
    assert texts(1, None) == texts(5, None) == texts(2, 10) == texts(2, 99) == [prompt.text for prompt in PROMPTS]


def test_the_order_depends_on_the_seed_and_on_nothing_else():
    assert texts(2, 4) == texts(2, 4)
    assert texts(1, 4) != texts(1, 4, seed=1)
