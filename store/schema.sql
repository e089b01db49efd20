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
