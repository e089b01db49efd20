-- How often each labeler cannot decide, or will not.
select
    labeler,
    count(*) as labels,
    avg((choice = 'tie')::integer) as ties,
    avg((choice = 'skip')::integer) as skips
from current_labels
group by all
order by ties desc, labeler
