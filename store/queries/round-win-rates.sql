-- Win rate of each round's model against every model it was evaluated with; a tie counts one half.
-- $labeler = null: eval:SCORER; all if null
with evaluated as (
    select distinct
        round,
        (summary ->> '$.model_id')::uuid as model_id,
        (summary ->> '$.base_model_id')::uuid as other_id
    from runs
    join run_rounds using (run_id)
    where kind = 'eval'
),
compared as (
    select r.round, c.labeler, a.model_id as model_a, b.model_id as model_b,
        case c.choice when 'a' then 1.0 when 'b' then 0.0 else 0.5 end as win_a
    from current_labels c
    join pairs p using (pair_id)
    join run_rounds r on r.run_id = p.run_id
    join image_models a on a.image_id = p.image_a and a.prompt_id = p.prompt_id
    join image_models b on b.image_id = p.image_b and b.prompt_id = p.prompt_id
    where p.source = 'eval' and c.labeler like 'eval:%' and c.choice <> 'skip'
),
sides as (
    select round, labeler, model_a as model_id, model_b as other_id, win_a as win from compared
    union all
    select round, labeler, model_b, model_a, 1 - win_a from compared
)
select
    round,
    labeler,
    m.name as model,
    o.name as other,
    count(*) as n,
    avg(win) as win_rate,
    count(*) filter (where win = 0.5) as ties
from sides
join evaluated using (round, model_id, other_id)
join models m using (model_id)
join models o on o.model_id = other_id
where $labeler::varchar is null or labeler = $labeler
group by round, labeler, model_id, m.name, other_id, o.name
order by round, labeler, model, other, other_id
