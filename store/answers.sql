-- What judges answered. Not in every store of this schema version: the table is created with its first rows.
create table if not exists answers (
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

comment on table answers is 'What judges behind an endpoint answered: a row for each request.';
comment on column answers.judge is 'name@revision; a labeler''s config names it, and it is the scorer of scores.';
comment on column answers.image_id is 'Of a pair, the image that was shown first.';
comment on column answers.pair_id is 'Null if the judge was shown one image.';
comment on column answers.answer is 'As the model wrote it.';
comment on column answers.value is 'As it was read: a score, or for a pair 1 if the image shown first is better, 0.5 or 0. Null if it cannot be read.';
comment on column answers.model is 'As the endpoint named it.';
comment on column answers.details is 'question, usage, finish_reason, logprobs of the first token; as far as there are any.';
