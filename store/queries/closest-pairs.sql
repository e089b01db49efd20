-- The pairs with the smallest margins, in the labels of one labeler.
-- $labeler = "pickscore": labeler
-- $n = 10: number of rows
select q.prompt, l.choice, l.margin, l.p_a, left(p.pair_id::varchar, 8) as pair
from current_labels l
join pairs p using (pair_id)
join prompts q using (prompt_id)
where l.labeler = $labeler and l.margin is not null and p.source <> 'eval'
order by l.margin, p.pair_id
limit $n
