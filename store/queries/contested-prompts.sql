-- The prompts on which labelers disagree most.
-- $n = 10: number of rows
select
    q.prompt,
    count(*) as comparisons,
    avg((x.choice <> y.choice)::integer) as disagreement,
    count(distinct p.pair_id) as pairs
from current_labels x
join current_labels y on y.pair_id = x.pair_id and x.labeler < y.labeler
join pairs p on p.pair_id = x.pair_id
join prompts q using (prompt_id)
where x.choice <> 'skip' and y.choice <> 'skip'
group by q.prompt_id, q.prompt
order by disagreement desc, comparisons desc, q.prompt
limit $n
