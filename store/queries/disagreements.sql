-- The pairs on which a scorer is surest of the opposite of what a person said.
-- $labeler = "pickscore": the scorer's labels
-- $person = null: labeler of kind human; each if null
-- $n = 10: rows
select
    q.prompt,
    h.labeler as person,
    h.choice as says,
    s.labeler as scorer,
    s.choice as finds,
    s.margin,
    left(p.pair_id::varchar, 8) as pair
from current_labels h
join labelers who on who.labeler = h.labeler and who.kind = 'human'
join current_labels s on s.pair_id = h.pair_id and s.labeler = $labeler
join pairs p on p.pair_id = h.pair_id
join prompts q using (prompt_id)
where (h.choice, s.choice) in (('a', 'b'), ('b', 'a')) and ($person::varchar is null or h.labeler = $person)
order by s.margin desc, q.prompt, p.pair_id, person
limit $n
