-- Ids are UUIDs made from content. There are no foreign keys: `prefloop store check` proves the references.
create table meta (schema_version integer not null, created timestamp not null);

-- Journal parts whose rows are in the tables; added counts the rows that were new.
create table parts (
    name varchar primary key,
    table_name varchar not null,
    n_rows bigint not null,
    added bigint not null
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

-- Of an imported picture only its model is known: its seed is -1.
create table generations (
    generation_id uuid primary key,
    prompt_id uuid not null,
    model_id uuid not null,
    image_id uuid not null,
    sampler json not null,
    seed bigint not null,
    image_index integer not null,
    run_id uuid
);

create table pairs (
    pair_id uuid primary key,
    prompt_id uuid not null,
    image_a uuid not null,
    image_b uuid not null,
    source varchar not null check (source in ('generate', 'eval', 'import')),
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
    rep integer not null,
    choice varchar not null check (choice in ('a', 'b', 'tie', 'skip')),
    p_a float,
    margin float,
    shown_left varchar check (shown_left in ('a', 'b')),
    ms integer,
    run_id uuid,
    primary key (pair_id, labeler, rep)
);

-- Views, which a later prefloop makes again.

create or replace view image_files as
select
    image_id,
    'images/' || left(image_id::varchar, 2) || '/' || replace(image_id::varchar, '-', '') || '.' || format as path
from images;

-- The label that counts: of each pair and labeler, the last one given.
create or replace view current_labels as
select * from labels
qualify row_number() over (partition by pair_id, labeler order by rep desc) = 1;

-- One row for each decided label. Ties and skips are not in it. Pairs of an evaluation are a split of their own,
-- whichever their prompt is in.
create or replace view preferences as
select
    l.labeler,
    p.pair_id,
    q.prompt,
    p.prompt_id,
    case l.choice when 'a' then p.image_a else p.image_b end as chosen,
    case l.choice when 'a' then p.image_b else p.image_a end as rejected,
    case l.choice when 'a' then l.p_a else 1 - l.p_a end as p_chosen,
    l.margin,
    case p.source when 'eval' then 'eval' else q.split end as split,
    q.tags,
    p.source
from current_labels l
join pairs p using (pair_id)
join prompts q using (prompt_id)
where l.choice in ('a', 'b');

-- How often two labelers say the same of one pair: over all pairs both judged, and over those both decided.
create or replace view agreement as
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

-- Model against model, each two models once; a tie counts one half.
create or replace view win_rates as
with image_models as (select distinct image_id, prompt_id, model_id from generations),
judged as (
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
    from judged
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

-- Both scores of every pair, for scorers of that name or name@revision.
create or replace macro score_pairs(wanted) as table
select p.pair_id, p.prompt_id, p.image_a, p.image_b, a.scorer, a.score as score_a, b.score as score_b
from pairs p
join scores a on a.image_id = p.image_a and a.prompt_id = p.prompt_id
join scores b on b.image_id = p.image_b and b.prompt_id = p.prompt_id and b.scorer = a.scorer
where a.scorer = wanted or a.scorer like wanted || '@%';
