-- The fraction of ties and skips of each labeler.
select
    labeler,
    count(*) as labels,
    avg((choice = 'tie')::integer) as ties,
    avg((choice = 'skip')::integer) as skips
from current_labels
group by all
order by ties desc, labeler
