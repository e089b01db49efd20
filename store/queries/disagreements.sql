-- The pairs on which a scorer contradicts a person with the largest margin.
-- $labeler = "pickscore": labeler of the scorer
-- $person = null: labeler of kind human; all if null
-- $n = 10: number of rows
select
    q.prompt,
    h.labeler as person,
    h.choice as person_choice,
    s.labeler as scorer,
    s.choice as scorer_choice,
    s.margin,
    left(p.pair_id::varchar, 8) as pair
from current_labels h
join labelers r on r.labeler = h.labeler and r.kind = 'human'
join current_labels s on s.pair_id = h.pair_id and s.labeler = $labeler
join pairs p on p.pair_id = h.pair_id
join prompts q using (prompt_id)
where (h.choice, s.choice) in (('a', 'b'), ('b', 'a')) and ($person::varchar is null or h.labeler = $person)
order by s.margin desc, q.prompt, p.pair_id, person
limit $n
