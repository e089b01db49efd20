-- Prompts that differ only in case and spaces, and images that several prompts share.
select
    'similar prompts' as what,
    count(*) as n,
    string_agg(prompt, ' | ' order by prompt) as which
from prompts
group by lower(trim(regexp_replace(prompt, '\s+', ' ', 'g')))
having count(*) > 1
union all
select
    'shared image',
    count(*),
    left(image_id::varchar, 8) || ': ' || string_agg(prompt, ' | ' order by prompt)
from (select distinct image_id, prompt_id from image_models)
join prompts using (prompt_id)
group by image_id
having count(*) > 1
order by what, n desc, which
