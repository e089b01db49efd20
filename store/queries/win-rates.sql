-- Win rate of each model against the others, by the value of a tag; a tie counts one half.
-- $tag = "category": name of the tag
-- $labeler = null: labeler; all if null
with compared as (
    select c.labeler, p.prompt_id, a.model_id as model_a, b.model_id as model_b,
        case c.choice when 'a' then 1.0 when 'b' then 0.0 else 0.5 end as win_a
    from current_labels c
    join pairs p using (pair_id)
    join image_models a on a.image_id = p.image_a and a.prompt_id = p.prompt_id
    join image_models b on b.image_id = p.image_b and b.prompt_id = p.prompt_id
    where c.choice <> 'skip' and a.model_id <> b.model_id
),
sides as (
    select labeler, prompt_id, model_a as model_id, win_a as win from compared
    union all
    select labeler, prompt_id, model_b, 1 - win_a from compared
)
select q.tags ->> $tag as value, m.name as model, count(*) as labels, avg(win) as win_rate
from sides
join models m using (model_id)
join prompts q using (prompt_id)
where $labeler::varchar is null or labeler = $labeler
group by all
order by value nulls last, model
