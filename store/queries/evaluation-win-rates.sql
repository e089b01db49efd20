-- Win rates of every two models of an evaluation by every scorer and by people; every prompt weighs the same, ties count ½.
-- $evaluation = null: id of the evaluation, or how it begins; all if null
with compared as (
    select
        e.*,
        x.scorer as judge,
        case when x.score > y.score then 1.0 when x.score < y.score then 0.0 else 0.5 end as win
    from evaluation_pairs e
    join scores x on x.image_id = e.image and x.prompt_id = e.prompt_id
    join scores y on y.image_id = e.other_image and y.prompt_id = e.prompt_id and y.scorer = x.scorer
    where isfinite(x.score) and isfinite(y.score)
    union all
    select
        e.*,
        'human' as judge,
        avg(case l.choice when 'tie' then 0.5 else ((l.choice = 'a') = (e.image = p.image_a))::integer end) as win
    from evaluation_pairs e
    join pairs p on p.pair_id = e.pair_id
    join current_labels l on l.pair_id = e.pair_id
    join labelers r on r.labeler = l.labeler
    where r.kind = 'human' and l.choice <> 'skip'
    group by all
),
by_prompt as (
    select evaluation_id, judge, model_id, other_id, prompt_id, avg(win) as win, count(*) as pairs
    from compared
    where $evaluation::varchar is null or starts_with(evaluation_id::varchar, $evaluation::varchar)
    group by all
)
select
    evaluation_id,
    judge,
    m.name as model,
    o.name as other,
    avg(win) as win_rate,
    count(*) as prompts,
    sum(pairs)::bigint as pairs,
    b.model_id,
    b.other_id
from by_prompt b
join models m on m.model_id = b.model_id
join models o on o.model_id = b.other_id
group by all
order by all
