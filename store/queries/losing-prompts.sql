-- The prompts on which a model loses most often against the others.
-- $model = null: name of the model; all if null
-- $labeler = null: labeler; all if null
-- $n = 10: number of rows
with compared as (
    select c.labeler, p.prompt_id, a.model_id as model_a, b.model_id as model_b, c.choice
    from current_labels c
    join pairs p using (pair_id)
    join image_models a on a.image_id = p.image_a and a.prompt_id = p.prompt_id
    join image_models b on b.image_id = p.image_b and b.prompt_id = p.prompt_id
    where c.choice <> 'skip' and a.model_id <> b.model_id
),
sides as (
    select labeler, prompt_id, model_a as model_id, (choice = 'b')::integer as lost from compared
    union all
    select labeler, prompt_id, model_b, (choice = 'a')::integer from compared
)
select m.name as model, q.prompt, count(*) as labels, sum(lost)::bigint as lost, avg(lost) as loss_rate
from sides
join models m using (model_id)
join prompts q using (prompt_id)
where ($model::varchar is null or m.name = $model) and ($labeler::varchar is null or labeler = $labeler)
group by all
order by loss_rate desc, lost desc, model, prompt
limit $n
