-- How often people give the same answer when they are shown a pair again.
with answers as (
    select labeler, choice, lag(choice) over (partition by pair_id, labeler order by revision) as before
    from labels
    join labelers using (labeler)
    where kind = 'human' and choice <> 'skip'
)
select
    labeler,
    count(*) as repeats,
    avg((choice = before)::integer) as same,
    count(*) filter (where 'tie' not in (choice, before)) as decided,
    avg((choice = before)::integer) filter (where 'tie' not in (choice, before)) as same_decided
from answers
where before is not null
group by all
order by labeler
