-- What people noted: both images bad, a flag, a comment; with the question they were asked.
-- $labeler = null: only this person
select
    n.labeler,
    q.prompt,
    n.choice,
    n.both_bad,
    n.flag,
    n.comment,
    n.question,
    left(n.pair_id::varchar, 8) as pair
from human_labels n
join pairs p using (pair_id)
join prompts q using (prompt_id)
where (n.both_bad or n.flag is not null or n.comment is not null) and ($labeler is null or n.labeler = $labeler)
order by n.flag nulls last, not n.both_bad, q.prompt, n.labeler, n.pair_id
