-- The tags on which a model wins less than half of its evaluation pairs; a tie counts one half.
-- $model = "tuned": name of the model
-- $labeler = null: eval:SCORER; all if null
with compared as (
    select c.labeler, p.prompt_id, a.model_id as model_a, b.model_id as model_b,
        case c.choice when 'a' then 1.0 when 'b' then 0.0 else 0.5 end as win_a
    from current_labels c
    join pairs p using (pair_id)
    join image_models a on a.image_id = p.image_a and a.prompt_id = p.prompt_id
    join image_models b on b.image_id = p.image_b and b.prompt_id = p.prompt_id
    where p.source = 'eval' and c.choice <> 'skip' and a.model_id <> b.model_id
),
sides as (
    select labeler, prompt_id, model_a as model_id, win_a as win from compared
    union all
    select labeler, prompt_id, model_b, 1 - win_a from compared
),
tagged as (select prompt_id, tags, unnest(json_keys(tags)) as tag from prompts)
select s.labeler, tag, tags ->> tag as value, count(*) as pairs, avg(win) as win_rate
from sides s
join models m using (model_id)
join tagged using (prompt_id)
where m.name = $model and ($labeler::varchar is null or s.labeler = $labeler)
group by all
having avg(win) < 0.5
order by win_rate, s.labeler, tag, value
