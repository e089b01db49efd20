-- What each labeler has left: pairs for training that it has not judged.
-- $labeler = null: one labeler; each if null
select
    l.labeler,
    count(*) as pairs,
    count(c.pair_id) as judged,
    count(*) - count(c.pair_id) as left_over
from labelers l
cross join (select pair_id from pairs where source <> 'eval') p
left join current_labels c on c.pair_id = p.pair_id and c.labeler = l.labeler
where ($labeler::varchar is null or l.labeler = $labeler) and l.labeler not like 'eval:%'
group by all
order by left_over desc, l.labeler
