-- Labels per labeler and day, by the start of the run that added them, with a running total.
-- $labeler = null: labeler; all if null
with days as (
    select labeler, date_trunc('day', started)::date as day, count(*) as labels
    from labels
    left join runs using (run_id)
    where $labeler::varchar is null or labeler = $labeler
    group by all
)
select labeler, day, labels, sum(labels) over (partition by labeler order by day nulls first)::bigint as total
from days
order by labeler, day nulls first
