-- How many training pairs each labeler has not labelled yet.
-- $labeler = null: labeler; all if null
select
    l.labeler,
    count(*) as pairs,
    count(c.pair_id) as labeled,
    count(*) - count(c.pair_id) as remaining
from labelers l
cross join (select pair_id from pairs where source <> 'eval') p
left join current_labels c on c.pair_id = p.pair_id and c.labeler = l.labeler
where ($labeler::varchar is null or l.labeler = $labeler) and l.labeler not like 'eval:%'
group by all
order by remaining desc, l.labeler
