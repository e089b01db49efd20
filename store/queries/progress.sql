-- Labels by labeler and day, by the run that each came from, and how many there were by then.
-- $labeler = null: whose labels; everybody's if null
with days as (
    select labeler, date_trunc('day', started)::date as day, count(*) as labels
    from labels
    left join runs using (run_id)
    where $labeler::varchar is null or labeler = $labeler
    group by all
)
select labeler, day, labels, sum(labels) over (partition by labeler order by day nulls first)::bigint as so_far
from days
order by labeler, day nulls first
