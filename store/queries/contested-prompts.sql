-- The prompts whose pairs labelers judge most differently.
-- $n = 10: rows
select
    q.prompt,
    count(*) as comparisons,
    avg((x.choice <> y.choice)::integer) as differ,
    count(distinct p.pair_id) as pairs
from current_labels x
join current_labels y on y.pair_id = x.pair_id and x.labeler < y.labeler
join pairs p on p.pair_id = x.pair_id
join prompts q using (prompt_id)
where x.choice <> 'skip' and y.choice <> 'skip'
group by q.prompt_id, q.prompt
order by differ desc, comparisons desc, q.prompt
limit $n
