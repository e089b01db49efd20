"""How far the labels of people can be trusted: position bias, repeats, agreement with the others, and who may answer at random."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import median
from typing import Literal
from uuid import UUID

import numpy as np

from ...core.agreement import alpha, kappa
from ...core.power import pairs_needed
from ...core.stats import MIN_PROMPTS, Estimate, estimate_share, prompt_means, wilson
from ...store import PairStore

MIN_SHARED = pairs_needed(0.7)
"""47 shared pairs show an agreement of 70 % where chance is 50 %. Fewer that show nothing do not speak against a rater."""

Verdict = Literal[
    "better than chance", "no better than chance", "worse than chance", "too few shared pairs", "no shared pairs"
]
_CODES = {"a": 0, "b": 1, "tie": 2}
_LABELS = """
    select l.labeler, l.pair_id, p.prompt_id, l.choice, l.shown_left, l.response_ms
    from labels l
    join labelers r using (labeler)
    join pairs p using (pair_id)
    where r.kind = 'human' and ($pairs is null or l.pair_id in (select unnest($pairs)))
    order by l.labeler, l.pair_id, l.revision
"""
Row = tuple[str, UUID, UUID, str, str | None, int | None]
"""Labeler, pair, prompt, choice, shown_left, response_ms; a later revision of the same labeler and pair comes later."""


@dataclass(frozen=True)
class Answer:
    """What a rater chose when a pair was shown, unless it was undone."""

    choice: str
    left: str
    """The image that was shown on the left: a or b."""
    ms: int | None


@dataclass(frozen=True)
class RatedPair:
    """One rater's answers to one pair, in order; more than one if it was shown again."""

    labeler: str
    pair: UUID
    prompt: UUID
    current: str | None
    """The label that counts, a, b, tie or skip; None if it was undone."""
    answers: tuple[Answer, ...]


@dataclass(frozen=True, kw_only=True)
class Rater:
    """Shares are 0..1. Every prompt weighs the same in agreement; left choices are over answers, since each shows its sides at random."""

    labeler: str
    n_labels: int
    """Pairs with a current label: a, b or tie."""
    n_skips: int
    ties: float | None
    """Share of ties among the labels."""
    n_sides: int
    """Answers that chose a side."""
    left: Estimate | None
    """Share of them that chose the left image, with Wilson's interval; ½ without bias."""
    n_repeats: int
    """Pairs shown again and answered again."""
    self_agreement: Estimate | None
    """Share of them with the same answer as before."""
    self_kappa: Estimate | None
    seconds: float | None
    """Median time from showing a pair to choosing."""
    n_others: int
    """Raters with labels on the same pairs."""
    n_shared: int
    """Pairs that this rater and another one labelled."""
    n_shared_prompts: int
    agreement: Estimate | None
    """Share of equal labels, over each shared pair and other rater."""
    kappa: Estimate | None
    """Cohen's kappa with the others: 0 for somebody who answers at random."""
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class RaterPair:
    """Two raters with labels on the same pairs."""

    labeler: str
    other: str
    n: int
    n_prompts: int
    agreement: Estimate
    kappa: Estimate | None


@dataclass(frozen=True, kw_only=True)
class RaterReport:
    raters: list[Rater]
    between: list[RaterPair]
    alpha: Estimate | None
    """Krippendorff's alpha, nominal, over all raters; None if undefined."""
    n_alpha: int
    """Pairs that two raters or more labelled."""
    n_alpha_prompts: int


def raters(store: PairStore, pairs: Sequence[UUID] | None = None) -> RaterReport:
    """The statistics of everybody whose labels the store has.

    Args:
        pairs: only the labels of these pairs.
    """
    return report(rated_pairs(store.rows(_LABELS, {"pairs": None if pairs is None else list(pairs)})))


def rated_pairs(rows: Iterable[Row]) -> list[RatedPair]:
    """What each rater answered to each pair. A revision in which no side was shown undoes the answer before it, if there is one;
    without one it is a label from elsewhere."""
    grouped: dict[tuple[str, UUID], list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row[0], row[1]].append(row)
    rated = []
    for (labeler, pair), revisions in grouped.items():
        answers: list[Answer] = []
        for *_, choice, left, ms in revisions:
            if left is not None:
                answers.append(Answer(choice, left, ms))
            elif answers:
                answers.pop()
        *_, choice, left, _ = revisions[-1]
        current = None if choice == "skip" and left is None else choice
        rated.append(RatedPair(labeler, pair, revisions[0][2], current, tuple(answers)))
    return rated


def report(rated: Sequence[RatedPair]) -> RaterReport:
    by_rater: dict[str, list[RatedPair]] = defaultdict(list)
    labels: dict[UUID, dict[str, int]] = defaultdict(dict)  # pair → rater → code
    prompts: dict[UUID, UUID] = {}
    for each in rated:
        by_rater[each.labeler].append(each)
        if each.current in _CODES:
            labels[each.pair][each.labeler], prompts[each.pair] = _CODES[each.current], each.prompt
    shared = {pair: by for pair, by in labels.items() if len(by) > 1}
    in_order = [prompts[pair].hex for pair in shared]
    return RaterReport(
        raters=[_rater(name, by_rater[name], shared, prompts) for name in sorted(by_rater)],
        between=list(_between(shared, prompts)),
        alpha=alpha([list(by.values()) for by in shared.values()], in_order, len(_CODES)),
        n_alpha=len(shared),
        n_alpha_prompts=len(set(in_order)),
    )


def _rater(name: str, rated: list[RatedPair], shared: dict[UUID, dict[str, int]], prompts: dict[UUID, UUID]) -> Rater:
    current = [each.current for each in rated]
    n_labels = sum(choice in _CODES for choice in current)
    answers = [answer for each in rated for answer in each.answers]
    sides = [answer.choice == answer.left for answer in answers if answer.choice in ("a", "b")]
    repeats = [
        (_CODES[before.choice], _CODES[after.choice], each.prompt.hex)
        for each in rated
        for before, after in pairwise(answer for answer in each.answers if answer.choice != "skip")
    ]
    compared = [
        (by[name], code, prompts[pair].hex, other)
        for pair, by in shared.items()
        if name in by
        for other, code in by.items()
        if other != name
    ]
    n_shared, n_shared_prompts = sum(name in by for by in shared.values()), len({prompt for *_, prompt, _ in compared})
    with_others = _kappa(compared)
    return Rater(
        labeler=name,
        n_labels=n_labels,
        n_skips=current.count("skip"),
        ties=current.count("tie") / n_labels if n_labels else None,
        n_sides=len(sides),
        left=Estimate(_share(sides), *wilson(_share(sides), len(sides))) if sides else None,
        n_repeats=len(repeats),
        self_agreement=_agreement(repeats),
        self_kappa=_kappa(repeats),
        seconds=_median_seconds(answers),
        n_others=len({other for *_, other in compared}),
        n_shared=n_shared,
        n_shared_prompts=n_shared_prompts,
        agreement=_agreement(compared),
        kappa=with_others,
        verdict=_verdict(with_others, n_shared, n_shared_prompts),
    )


def _share(true: list[bool]) -> float:
    return sum(true) / len(true)


def _median_seconds(answers: list[Answer]) -> float | None:
    times = [answer.ms for answer in answers if answer.ms is not None]
    return median(times) / 1000 if times else None


def _between(shared: dict[UUID, dict[str, int]], prompts: dict[UUID, UUID]) -> Iterator[RaterPair]:
    compared: dict[tuple[str, str], list[tuple]] = defaultdict(list)
    for pair, by in shared.items():
        for one, other in combinations(sorted(by), 2):
            compared[one, other].append((by[one], by[other], prompts[pair].hex))
    for (one, other), rows in sorted(compared.items()):
        agreement = _agreement(rows)
        assert agreement is not None
        n_prompts = len({row[2] for row in rows})
        yield RaterPair(
            labeler=one, other=other, n=len(rows), n_prompts=n_prompts, agreement=agreement, kappa=_kappa(rows)
        )


def _agreement(compared: list[tuple]) -> Estimate | None:
    """Rows begin with two codes and a prompt."""
    if not compared:
        return None
    same = [float(row[0] == row[1]) for row in compared]
    return estimate_share(prompt_means(np.array(same)[:, None], [row[2] for row in compared])[:, 0])


def _kappa(compared: list[tuple]) -> Estimate | None:
    if not compared:
        return None
    first, second = (np.array([row[side] for row in compared], np.int64) for side in (0, 1))
    return kappa(first, second, [row[2] for row in compared], len(_CODES))


def _verdict(with_others: Estimate | None, n_shared: int, n_shared_prompts: int) -> Verdict:
    if not n_shared:
        return "no shared pairs"
    if n_shared_prompts < MIN_PROMPTS:
        return "too few shared pairs"
    if with_others and with_others.low > 0:
        return "better than chance"
    if with_others and with_others.high < 0:
        return "worse than chance"
    # the interval contains 0, or there is none: a rater whose labels are all the same agrees by chance alone
    return "too few shared pairs" if n_shared < MIN_SHARED else "no better than chance"
