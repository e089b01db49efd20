-- Ids are UUIDs derived from content. There are no foreign keys: `prefloop store check` verifies the references.
create table meta (schema_version integer not null, created timestamp not null);

-- Journal parts that have been ingested.
create table parts (
    name varchar primary key,
    table_name varchar not null,
    n_rows bigint not null,
    rows_added bigint not null
);

create table runs (
    run_id uuid primary key,
    kind varchar not null,
    status varchar not null check (status in ('running', 'done', 'failed', 'interrupted')),
    started timestamp not null,
    updated timestamp not null,
    config json not null,
    versions json not null,
    git_commit varchar,
    parents uuid[],
    summary json,
    error varchar
);

create table prompts (
    prompt_id uuid primary key,
    prompt varchar not null,
    split varchar not null check (split in ('train', 'validation')),
    tags json not null
);

create table models (
    model_id uuid primary key,
    name varchar not null,
    config json not null
);

create table images (
    image_id uuid primary key,
    width integer not null,
    height integer not null,
    format varchar not null check (format in ('png', 'jpg', 'webp')),
    n_bytes bigint not null
);

-- For an imported image only the model is known: its seed is -1.
create table generations (
    generation_id uuid primary key,
    prompt_id uuid not null,
    model_id uuid not null,
    image_id uuid not null,
    sampling json not null,
    seed bigint not null,
    image_index integer not null,
    run_id uuid
);

create table pairs (
    pair_id uuid primary key,
    prompt_id uuid not null,
    image_a uuid not null,
    image_b uuid not null,
    source varchar not null check (source in ('generate', 'pair', 'eval', 'import')),
    run_id uuid,
    check (image_a < image_b)
);

create table scorers (
    scorer varchar primary key,
    name varchar not null,
    config json not null
);

create table scores (
    scorer varchar not null,
    image_id uuid not null,
    prompt_id uuid not null,
    score float not null,
    run_id uuid,
    primary key (scorer, image_id, prompt_id)
);

create table labelers (
    labeler varchar primary key,
    kind varchar not null check (kind in ('human', 'ai', 'ensemble', 'imported')),
    config json not null
);

create table labels (
    pair_id uuid not null,
    labeler varchar not null,
    revision integer not null,
    choice varchar not null check (choice in ('a', 'b', 'tie', 'skip')),
    p_a float,
    margin float,
    shown_left varchar check (shown_left in ('a', 'b')),
    response_ms integer,
    run_id uuid,
    notes json,
    primary key (pair_id, labeler, revision)
);

-- The images of each evaluation: of every model the same prompts and indices.
create table evaluations (
    evaluation_id uuid not null,
    generation_id uuid not null,
    place integer not null,
    tags json not null,
    primary key (evaluation_id, generation_id)
);

create table answers (
    answer_id uuid primary key,
    judge varchar not null,
    prompt_id uuid not null,
    image_id uuid not null,
    pair_id uuid,
    answer varchar not null,
    value float,
    model varchar not null,
    template varchar not null,
    template_hash varchar not null,
    details json not null,
    run_id uuid
);

-- Views. A change here needs a new schema version, as a change of the tables does.

-- The path of each image file, relative to the store's folder.
create view image_files as
select
    image_id,
    'images/' || left(image_id::varchar, 2) || '/' || replace(image_id::varchar, '-', '') || '.' || format as path
from images;

-- Which model generated which image for which prompt. Equal images of several models are one image: a row for each model.
create view image_models as
select distinct image_id, prompt_id, model_id from generations;

-- The round of each run of a loop: of the runs of kind round, and of those that they are parents of. A resumed round has
-- several runs with one number. A round without a number is not in it.
create view run_rounds as
select r.run_id, max(case o.kind when 'round' then try_cast(o.config ->> '$.round' as integer) end) as round
from (select run_id, unnest(list_append(parents, run_id)) as round_id from runs) r
join runs o on o.run_id = r.round_id
group by r.run_id
having round is not null;

-- The names of the models that generated a pair's images; of several models, the name that sorts first. Pairs of which
-- neither model is known are not in it. Reads generations, since image_models' distinct rows would only make it slower.
create view pair_models as
select
    pair_id,
    min(name) filter (where image_id = image_a) as model_a,
    min(name) filter (where image_id = image_b) as model_b
from (select pair_id, prompt_id, image_a, image_b, unnest([image_a, image_b]) as image_id from pairs)
join generations using (prompt_id, image_id)
join models using (model_id)
group by pair_id;

-- The images of an evaluation, with the model of each.
create view evaluation_images as
select e.evaluation_id, g.model_id, e.place, g.prompt_id, g.image_index, g.image_id, e.tags
from evaluations e
join generations g using (generation_id);

-- The comparisons of an evaluation: every two models once, by prompt and index. Two equal images are a comparison without
-- a pair.
create view evaluation_pairs as
select
    x.evaluation_id,
    x.model_id,
    y.model_id as other_id,
    x.prompt_id,
    x.image_index,
    x.image_id as image,
    y.image_id as other_image,
    p.pair_id,
    x.tags
from evaluation_images x
join evaluation_images y
    on y.evaluation_id = x.evaluation_id
    and y.prompt_id = x.prompt_id
    and y.image_index = x.image_index
    and y.model_id > x.model_id
left join pairs p
    on p.prompt_id = x.prompt_id
    and p.image_a = least(x.image_id, y.image_id)
    and p.image_b = greatest(x.image_id, y.image_id);

-- Both scores of every pair, for each scorer that has scored both images.
create view pair_scores as
select p.pair_id, p.prompt_id, p.image_a, p.image_b, a.scorer, a.score as score_a, b.score as score_b, p.source
from pairs p
join scores a on a.image_id = p.image_a and a.prompt_id = p.prompt_id
join scores b on b.image_id = p.image_b and b.prompt_id = p.prompt_id and b.scorer = a.scorer;

-- The same for the scorers with one name, or for one name@revision.
create macro score_pairs(scorer_name) as table
select * from pair_scores where scorer = scorer_name or starts_with(scorer, scorer_name || '@');

-- The label that counts for each pair and labeler: the latest revision. Most labels are never revised: joining the few
-- later revisions takes half the time of a window over all.
create view current_labels as
select l.* from labels l
anti join (select pair_id, labeler, revision from labels where revision > 0) later
    on later.pair_id = l.pair_id and later.labeler = l.labeler and later.revision > l.revision;

-- The labels of people that count, with what they were asked and what they noted. Undone labels are not in it.
create view human_labels as
select
    l.labeler,
    l.pair_id,
    l.revision,
    l.choice,
    coalesce((l.notes ->> '$.both_bad')::boolean, false) as both_bad,
    l.notes ->> '$.flag' as flag,
    l.notes ->> '$.comment' as comment,
    r.config ->> '$.question' as question,
    l.shown_left,
    l.response_ms,
    l.run_id
from current_labels l
join labelers h using (labeler)
left join runs r on r.run_id = l.run_id
where h.kind = 'human' and not (l.choice = 'skip' and l.shown_left is null);

-- One row for each pair that a labeler has decided, by its current label: no ties, no skips. Evaluation pairs are included;
-- their split is eval, whichever split their prompt is in. The ranks are below the other joins: DuckDB then leaves them out of
-- queries that do not use them, and moves conditions on a labeler below them.
create view preferences as
with decided as (
    select
        l.labeler,
        l.choice,
        l.p_a,
        l.margin,
        p.*,
        r.round,
        case when l.margin is not null then row_number() over (
            partition by l.labeler, p.prompt_id, r.round, p.source = 'eval' order by l.margin desc nulls last, p.pair_id
        ) end as margin_rank
    from current_labels l
    join pairs p using (pair_id)
    left join run_rounds r on r.run_id = p.run_id
    where l.choice in ('a', 'b')
)
select
    d.labeler,
    d.pair_id,
    q.prompt,
    d.prompt_id,
    case d.choice when 'a' then d.image_a else d.image_b end as chosen,
    case d.choice when 'a' then d.image_b else d.image_a end as rejected,
    case d.choice when 'a' then d.p_a else 1 - d.p_a end as p_chosen,
    d.margin,
    case d.source when 'eval' then 'eval' else q.split end as split,
    q.tags,
    d.source,
    case d.choice when 'a' then m.model_a else m.model_b end as chosen_model,
    case d.choice when 'a' then m.model_b else m.model_a end as rejected_model,
    d.run_id,
    d.round,
    d.margin_rank
from decided d
join prompts q using (prompt_id)
left join pair_models m on m.pair_id = d.pair_id;

-- The preferences that training may use: no evaluation pair is trained on.
create view training_preferences as
select * from preferences where split in ('train', 'validation');

-- How often two labelers agree: over all pairs that both labeled, and over those that both decided.
create view agreement as
select
    x.labeler as labeler,
    y.labeler as other,
    count(*) as n,
    avg((x.choice = y.choice)::integer) as agree,
    count(*) filter (where x.choice <> 'tie' and y.choice <> 'tie') as n_decided,
    avg((x.choice = y.choice)::integer) filter (where x.choice <> 'tie' and y.choice <> 'tie') as agree_decided
from current_labels x
join current_labels y on x.pair_id = y.pair_id and x.labeler < y.labeler
where x.choice <> 'skip' and y.choice <> 'skip'
group by all;

-- Win rate of one model over another, for each pair of models once; a tie counts one half.
create view win_rates as
with compared as (
    select
        l.labeler,
        ma.model_id as model_a,
        mb.model_id as model_b,
        case l.choice when 'a' then 1.0 when 'b' then 0.0 else 0.5 end as win_a
    from current_labels l
    join pairs p using (pair_id)
    join image_models ma on ma.image_id = p.image_a and ma.prompt_id = p.prompt_id
    join image_models mb on mb.image_id = p.image_b and mb.prompt_id = p.prompt_id
    where l.choice <> 'skip' and ma.model_id <> mb.model_id
),
folded as (
    select
        labeler,
        least(model_a, model_b) as model_id,
        greatest(model_a, model_b) as other_id,
        case when model_a < model_b then win_a else 1 - win_a end as win
    from compared
)
select
    labeler,
    m.name as model,
    o.name as other,
    count(*) as n,
    avg(win) as win_rate,
    count(*) filter (where win = 0.5) as ties,
    model_id,
    other_id
from folded
join models m using (model_id)
join models o on o.model_id = other_id
group by all;
