-- Each round of the loop: what it generated for training, and what each labeler decided of it.
with generated as (
    select round, count(distinct prompt_id) as prompts, count(distinct image_id) as images
    from generations
    join run_rounds using (run_id)
    join runs using (run_id)
    where kind <> 'eval'
    group by round
),
paired as (
    select round, count(*) as pairs
    from pairs
    join run_rounds using (run_id)
    where source <> 'eval'
    group by round
),
decided as (
    select round, labeler, count(*) as n, round(avg(margin), 4) as margin
    from training_preferences
    where round is not null
    group by all
),
by_labeler as (
    select
        round,
        to_json(map_from_entries(list((labeler, n) order by labeler))) as decided,
        to_json(map_from_entries(list((labeler, margin) order by labeler) filter (where margin is not null))) as mean_margin
    from decided
    group by round
)
select
    round,
    coalesce(prompts, 0) as prompts,
    coalesce(images, 0) as images,
    coalesce(pairs, 0) as pairs,
    coalesce(decided, '{}') as decided,
    coalesce(mean_margin, '{}') as mean_margin
from (select distinct round from run_rounds)
left join generated using (round)
left join paired using (round)
left join by_labeler using (round)
order by round
