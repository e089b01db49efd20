"""Which prompts a round generates images for."""

import random
from collections import deque
from collections.abc import Iterator, Sequence

from ..generate.prompts import Prompt


def prompts_of_round(prompts: Sequence[Prompt], number: int, per_round: int | None, seed: int) -> list[Prompt]:
    """The prompts of round `number`, from 1: no prompt comes again before all of the set were used, and none twice in a round.

    Args:
        per_round: number of prompts; None, or as many as there are, is all of them in the set's own order.
    """
    if per_round is None or per_round >= len(prompts):
        return list(prompts)
    sequence, postponed, chosen = _shuffled(len(prompts), seed), deque[int](), dict[int, None]()
    for _ in range(number):
        chosen, repeated = {}, deque[int]()
        while len(chosen) < per_round:
            index = postponed.popleft() if postponed else next(sequence)
            if index in chosen:
                repeated.append(index)
            chosen[index] = None
        postponed.extendleft(reversed(repeated))
    return [prompts[index] for index in chosen]


def _shuffled(n: int, seed: int) -> Iterator[int]:
    """0 to n - 1 in a random order, and again in another, without end."""
    epoch = 0
    while True:
        yield from random.Random(f"{seed}:{epoch}").sample(range(n), n)
        epoch += 1
