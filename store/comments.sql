-- What the tables and views mean; `prefloop store schema` shows it, and so does any DuckDB shell.
comment on table meta is 'The version of the schema, and when this database was created.';
comment on table parts is 'Journal parts that have been ingested.';
comment on column parts.rows_added is 'Rows added. Parts ingested together share one count, stored on the first.';

comment on table runs is 'Each call of a stage.';
comment on column runs.kind is 'generate, relabel, train, eval, import, round, ...';
comment on column runs.started is 'UTC.';
comment on column runs.updated is 'UTC; when the run ended, if it has.';
comment on column runs.config is 'Every setting, including defaults.';
comment on column runs.versions is 'Versions of Python and the libraries.';
comment on column runs.git_commit is 'Commit of prefloop''s checkout, if it ran from one.';
comment on column runs.parents is 'Runs whose results it used, and the run that it is a part of, such as a round.';
comment on column runs.summary is 'The stage''s result.';

comment on table prompts is 'Prompt texts; the id is derived from the exact UTF-8 text.';
comment on column prompts.split is 'train, or validation for one in twenty; derived from the id.';
comment on column prompts.tags is 'JSON object of strings and lists, such as {"category": "animals"}.';

comment on table models is 'Models that generated images.';
comment on column models.model_id is 'Derived from the weight and config files; for an imported model from its name.';
comment on column models.config is 'How the model was named and loaded; "imported" if only its name is known.';

comment on table images is 'Images; the id is derived from the bytes of the file.';
comment on column images.width is 'Pixels.';
comment on column images.height is 'Pixels.';
comment on column images.format is 'png, jpg or webp.';

comment on table generations is 'Which model generated an image for a prompt, and how.';
comment on column generations.sampling is 'Steps, guidance scale, scheduler and other sampling settings.';
comment on column generations.seed is '-1 if unknown.';
comment on column generations.image_index is 'Index among the images of the prompt, from 0.';

comment on table pairs is 'Two images of one prompt; image_a is the one with the smaller id.';
comment on column pairs.source is 'generate, pair, import or eval; eval pairs are never trained on.';

comment on table scorers is 'Models that score one image.';
comment on column scorers.scorer is 'name@revision; scores of two revisions are not comparable.';

comment on table scores is 'One score per scorer, image and prompt.';
comment on column scores.score is 'In the scorer''s own unit; higher is better.';

comment on table labelers is 'Who labels pairs: a person, a scorer, or several scorers under a rule.';
comment on column labelers.kind is 'human, ai, ensemble or imported.';
comment on column labelers.config is 'How it decides.';

comment on table labels is 'Every label ever given; none is overwritten.';
comment on column labels.revision is 'From 0; the latest revision of a labeler''s label counts.';
comment on column labels.choice is 'a or b (image_a or image_b of the pair), tie or skip.';
comment on column labels.p_a is 'Probability that image_a is preferred.';
comment on column labels.margin is 'Chosen minus rejected in the scorer''s own unit; never negative.';
comment on column labels.shown_left is 'Which image a person saw on the left: a or b.';
comment on column labels.response_ms is 'Milliseconds a person took to answer.';
comment on column labels.notes is 'What a person noted: JSON object with both_bad (true; the choice is tie), flag and comment, or null.';

comment on table evaluations is 'The images of each evaluation: of every model the same prompts and indices.';
comment on column evaluations.evaluation_id is 'Derived from the generations: the same evaluation again has the same id.';
comment on column evaluations.place is 'Of the prompt among the evaluation''s prompts, from 0.';
comment on column evaluations.tags is 'Of the prompt, as the evaluation''s prompt file gave them.';

comment on table answers is 'What judges behind an endpoint answered: a row for each request.';
comment on column answers.judge is 'name@revision; a labeler''s config names it, and it is the scorer of scores.';
comment on column answers.image_id is 'Of a pair, the image that was shown first.';
comment on column answers.pair_id is 'Null if the judge was shown one image.';
comment on column answers.answer is 'As the model wrote it.';
comment on column answers.value is 'As it was read: a score, or for a pair 1 if the image shown first is better, 0.5 or 0. Null if it cannot be read.';
comment on column answers.model is 'As the endpoint named it.';
comment on column answers.details is 'question, usage, finish_reason, logprobs of the first token; as far as there are any.';

comment on view image_files is 'Path of each image file, relative to the store''s folder.';
comment on view image_models is 'Which model generated which image for which prompt; several rows if several models did.';
comment on view run_rounds is 'The round of each run of a loop: of a run of kind round, and of the runs that are parts of it.';
comment on column run_rounds.round is 'From 1; a resumed round has several runs of kind round.';
comment on view pair_models is 'Names of the models that generated a pair''s images; of several models, the name that sorts first.';
comment on view evaluation_images is 'The images of an evaluation, with the model of each.';
comment on view evaluation_pairs is 'The comparisons of an evaluation: every two models once, by prompt and index.';
comment on column evaluation_pairs.pair_id is 'null if both models generated the same image.';
comment on view pair_scores is 'Both scores of every pair, for each scorer that has scored both images.';
comment on view current_labels is 'The label that counts for each pair and labeler: the latest revision.';
comment on view human_labels is 'The labels of people that count, with what they were asked and what they noted; no undone labels.';
comment on column human_labels.both_bad is 'The person called both images bad; the choice is tie.';
comment on column human_labels.flag is 'What is wrong with the pair: broken image, unsafe or other; else null.';
comment on column human_labels.question is 'What the page asked; null for imported labels and for those of earlier versions.';
comment on view preferences is 'Pairs that a labeler has decided, by its current label: no ties, no skips; evaluation pairs included.';
comment on column preferences.p_chosen is 'Probability that the chosen image is preferred.';
comment on column preferences.margin is 'Chosen minus rejected in the scorer''s own unit; never negative.';
comment on column preferences.split is 'eval for evaluation pairs, else the prompt''s: train or validation.';
comment on column preferences.chosen_model is 'Name of the model that generated it; of several, the first by name; null if unknown.';
comment on column preferences.rejected_model is 'As chosen_model.';
comment on column preferences.run_id is 'The run that added the pair.';
comment on column preferences.round is 'The round of the loop that added the pair; null outside of a loop.';
comment on column preferences.margin_rank is '1 for the largest margin among the pairs of the same labeler, prompt and round; null without a margin.';
comment on view training_preferences is 'The preferences that training may use: those of the splits train and validation.';
comment on view agreement is 'How often two labelers agree: over all pairs both labeled, and over those both decided.';
comment on view win_rates is 'Win rate of one model over another by labeler, each pair of models once; a tie counts one half.';
comment on column win_rates.win_rate is 'Win rate of model over other.';
comment on macro table score_pairs is 'pair_scores of the scorers with that name, or of one name@revision.';
