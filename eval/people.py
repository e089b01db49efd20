"""What people chose in an evaluation: their current labels of its pairs."""

from uuid import UUID

from ..store import PairStore

_VOTES = """
    select p.prompt_id, p.image_a, p.image_b, avg(case l.choice when 'a' then 1.0 when 'b' then 0.0 else 0.5 end) as share
    from (select distinct pair_id from evaluation_pairs where evaluation_id = $evaluation and pair_id is not null)
    join pairs p using (pair_id)
    join current_labels l using (pair_id)
    join labelers r using (labeler)
    where r.kind = 'human' and l.choice <> 'skip'
    group by all"""
_COUNTS = """
    select
        count(distinct e.pair_id),
        count(distinct e.pair_id) filter (where l.choice is not null),
        count(l.choice),
        count(l.choice) filter (where l.choice = 'tie')
    from (select distinct pair_id from evaluation_pairs where evaluation_id = $evaluation and pair_id is not null) e
    left join (
        select l.pair_id, l.choice from current_labels l join labelers r using (labeler)
        where r.kind = 'human' and l.choice <> 'skip'
    ) l using (pair_id)"""

Votes = dict[tuple[UUID, UUID, UUID], float]
"""Prompt, image and other image → share of the labels that chose the first of the two, ties one half."""


def votes_of(store: PairStore, evaluation: UUID) -> Votes:
    """The labels of all people, each person's last one, in both orders of the images."""
    votes: Votes = {}
    for prompt, a, b, share in store.rows(_VOTES, {"evaluation": evaluation}):
        votes |= {(prompt, a, b): share, (prompt, b, a): 1 - share}
    return votes


def counts_of(store: PairStore, evaluation: UUID) -> dict[str, int]:
    """Of an evaluation: pairs that people can label (images that differ), labelled pairs, labels, ties among the labels."""
    ((pairs, labelled, labels, ties),) = store.rows(_COUNTS, {"evaluation": evaluation})
    return {"pairs": pairs, "labelled": labelled, "labels": labels, "ties": ties}
