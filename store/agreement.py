"""How often labelers say the same of one pair, and how much of that is more than chance."""

from typing import TYPE_CHECKING

from .pairstore import PairStore

if TYPE_CHECKING:
    import pyarrow as pa

# Cohen's kappa: (agreement - chance) / (1 - chance), chance from how often each labeler says a, b and tie; null where
# both always say the same one thing. A person who was shown a pair again is compared with their answer before; an answer
# that was undone, which the next repetition tells by showing no side, is none.
_AGREEMENT = """
    with shown as (
        select *, lead(shown_left is null) over same as undone
        from labels where labeler in (select labeler from labels where revision > 0 and shown_left is not null)
        window same as (partition by pair_id, labeler order by revision)
    ),
    repeated as (
        select labeler, choice, lag(choice) over (partition by pair_id, labeler order by revision) as before
        from shown where shown_left is not null and not coalesce(undone, false) and choice <> 'skip'
    ),
    judged as (
        select x.labeler as labeler, y.labeler as other, x.choice as one, y.choice as two, x.choice = y.choice as same
        from current_labels x
        join current_labels y on x.pair_id = y.pair_id and x.labeler < y.labeler
        where x.choice <> 'skip' and y.choice <> 'skip'
        union all
        select labeler, labeler, before, choice, before = choice from repeated where before is not null
    ),
    counted as (
        select labeler, other, 'all' as which, one, two, same from judged
        union all
        select labeler, other, 'decided', one, two, same from judged where one <> 'tie' and two <> 'tie'
    ),
    shares as (
        select
            labeler, other, which, count(*) as n, avg(same::integer) as agree,
            avg((one = 'a')::integer) * avg((two = 'a')::integer)
            + avg((one = 'b')::integer) * avg((two = 'b')::integer)
            + avg((one = 'tie')::integer) * avg((two = 'tie')::integer) as chance
        from counted
        group by all
    ),
    kappas as (
        select *, case when chance < 1 then (agree - chance) / (1 - chance) end as kappa from shares
    )
    select a.labeler, a.other, a.n, a.agree, a.kappa,
        coalesce(d.n, 0) as n_decided, d.agree as agree_decided, d.kappa as kappa_decided
    from kappas a
    left join kappas d on d.labeler = a.labeler and d.other = a.other and d.which = 'decided'
    where a.which = 'all'
    order by a.labeler, a.other
"""


def agreement(store: PairStore) -> "pa.Table":
    """One row for each two labelers that have judged the same pair: n pairs, the share of them of which both say the
    same, and kappa; then the same over the pairs both decided."""
    return store.sql(_AGREEMENT)
