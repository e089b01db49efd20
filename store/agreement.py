"""How often labelers agree on a pair, and how far that exceeds chance."""

from typing import TYPE_CHECKING

from .pairstore import PairStore

if TYPE_CHECKING:
    import pyarrow as pa

# Cohen's kappa: (agreement - chance) / (1 - chance), chance from how often each labeler says a, b and tie; null if both
# always give the same one answer. A person who was shown a pair again is compared with their previous answer. An answer that
# was undone does not count: its next revision has no side shown.
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
        select x.labeler as labeler, y.labeler as other, x.choice as choice, y.choice as other_choice, x.choice = y.choice as same
        from current_labels x
        join current_labels y on x.pair_id = y.pair_id and x.labeler < y.labeler
        where x.choice <> 'skip' and y.choice <> 'skip'
        union all
        select labeler, labeler, before, choice, before = choice from repeated where before is not null
    ),
    counted as (
        select labeler, other, 'all' as which, choice, other_choice, same from judged
        union all
        select labeler, other, 'decided', choice, other_choice, same
        from judged where choice <> 'tie' and other_choice <> 'tie'
    ),
    rates as (
        select
            labeler, other, which, count(*) as n, avg(same::integer) as agree,
            avg((choice = 'a')::integer) * avg((other_choice = 'a')::integer)
            + avg((choice = 'b')::integer) * avg((other_choice = 'b')::integer)
            + avg((choice = 'tie')::integer) * avg((other_choice = 'tie')::integer) as chance
        from counted
        group by all
    ),
    kappas as (
        select *, case when chance < 1 then (agree - chance) / (1 - chance) end as kappa from rates
    )
    select a.labeler, a.other, a.n, a.agree, a.kappa,
        coalesce(d.n, 0) as n_decided, d.agree as agree_decided, d.kappa as kappa_decided
    from kappas a
    left join kappas d on d.labeler = a.labeler and d.other = a.other and d.which = 'decided'
    where a.which = 'all'
    order by a.labeler, a.other
"""


def agreement(store: PairStore) -> "pa.Table":
    """One row for each two labelers with labels on the same pairs: n pairs, the fraction on which they agree, and kappa; then
    the same over the pairs that both decided."""
    return store.sql(_AGREEMENT)
