-- What the tables and views mean; `prefloop store schema` shows it, and so does any DuckDB shell.
comment on table meta is 'The schema''s version and when this database was made; views of version 2.';
comment on table parts is 'Journal parts whose rows are in the tables.';
comment on column parts.added is 'Rows that were new; of parts taken together, beside the first.';

comment on table runs is 'Each call of a stage.';
comment on column runs.kind is 'generate, relabel, train, eval, import, ...';
comment on column runs.started is 'UTC.';
comment on column runs.updated is 'UTC; of a run that ended, its end.';
comment on column runs.config is 'Every setting, defaults too.';
comment on column runs.versions is 'Of Python and the libraries.';
comment on column runs.git_commit is 'Of prefloop''s checkout, where it ran from one.';
comment on column runs.parents is 'Runs whose results it used.';
comment on column runs.summary is 'What it found or made, by stage.';

comment on table prompts is 'Texts; a prompt''s id follows from its exact UTF-8 text.';
comment on column prompts.split is 'train, or validation for one in twenty; follows from the id.';
comment on column prompts.tags is 'Object of texts, such as {"category": "animals"}.';

comment on table models is 'What drew pictures.';
comment on column models.model_id is 'Follows from the weights'' and settings'' files; of an imported one from its name.';
comment on column models.config is 'How it was named; imported where only that is known.';

comment on table images is 'Pictures; an image''s id follows from its file''s bytes.';
comment on column images.width is 'Pixels.';
comment on column images.height is 'Pixels.';
comment on column images.format is 'png, jpg or webp.';

comment on table generations is 'Which model drew a picture for a prompt, and how.';
comment on column generations.sampler is 'Steps, guidance scale, scheduler and the like.';
comment on column generations.seed is '-1 where it is not known.';
comment on column generations.image_index is 'Which of the prompt''s pictures, from 0.';

comment on table pairs is 'Two pictures of one prompt, not yet judged; image_a is the one with the smaller id.';
comment on column pairs.source is 'generate, import, or eval: pairs of an evaluation are never trained on.';

comment on table scorers is 'What gives one picture a number.';
comment on column scorers.scorer is 'name@revision; another revision may give another score.';

comment on table scores is 'One number for each scorer, picture and prompt.';
comment on column scores.score is 'In the scorer''s own unit; higher is better.';

comment on table labelers is 'Who decides a pair: a person, a scorer, or several scorers under a rule.';
comment on column labelers.kind is 'human, ai, ensemble or imported.';
comment on column labelers.config is 'How it decides.';

comment on table labels is 'Every answer that was given; none is overwritten.';
comment on column labels.rep is 'From 0; a later answer of the same labeler supersedes.';
comment on column labels.choice is 'a, b, tie or skip: image_a or image_b of the pair.';
comment on column labels.p_a is 'Probability that image_a is preferred.';
comment on column labels.margin is 'Chosen minus rejected in the scorer''s own unit; never negative.';
comment on column labels.shown_left is 'Which of the two a person saw on the left: a or b.';
comment on column labels.ms is 'Milliseconds a person took.';

comment on view image_files is 'Where each picture lies below the store''s folder.';
comment on view current_labels is 'The label that counts: of each pair and labeler, the last one given.';
comment on view preferences is 'Decided labels; ties and skips are not in it. Training takes those of the splits train and validation.';
comment on column preferences.p_chosen is 'Probability that the chosen one is preferred.';
comment on column preferences.margin is 'Chosen minus rejected in the scorer''s own unit; never negative.';
comment on column preferences.split is 'eval for pairs of an evaluation, else the prompt''s: train or validation.';
comment on view agreement is 'How often two labelers say the same of one pair: over all both judged, and over those both decided.';
comment on view win_rates is 'Model against model by labeler, each two models once; a tie counts one half.';
comment on column win_rates.win_rate is 'Of model against other.';
comment on macro table score_pairs is 'Both scores of every pair, for scorers of that name or name@revision.';
