-- Seconds per label of people, from their answers, and per score of scorers, from their runs.
with people as (
    select labeler, count(*) as n, sum(response_ms) / 1000 as seconds
    from labels
    join labelers using (labeler)
    where kind = 'human'
    group by all
),
scored as (
    select unnest(json_keys(summary -> 'seconds')) as scorer, summary
    from runs
    where kind = 'relabel' and json_exists(summary, '$.seconds')
),
machines as (
    select
        scorer,
        sum((summary -> 'scored' ->> scorer)::bigint)::bigint as n,
        sum((summary -> 'seconds' ->> scorer)::double) as seconds
    from scored
    group by all
)
select 'labels of ' || labeler as what, n, seconds, seconds / n as seconds_per_item from people
union all
select 'scores of ' || scorer, n, seconds, seconds / nullif(n, 0) from machines
order by seconds_per_item desc nulls last, what
