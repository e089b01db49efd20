"""Select the labels to export: any SQL over the columns of `preferences`, with ties; never pairs of an evaluation."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from ...core.errors import IntegrityError, UsageError
from ...core.ids import content_bytes
from ..condition import condition
from ..labelers import require_training_labels
from ..pairstore import PairStore
from ..query import ask
from .config import ExportConfig

_QUERY = """
    with judged as (
        select
            l.labeler, p.pair_id, q.prompt, p.prompt_id,
            case l.choice when 'b' then p.image_b else p.image_a end as chosen,
            case l.choice when 'b' then p.image_a else p.image_b end as rejected,
            case l.choice when 'b' then 1 - l.p_a::double else l.p_a::double end as p_chosen,
            l.margin, q.split, q.tags, p.source, l.choice, p.image_a, p.image_b, m.model_a, m.model_b,
            case l.choice when 'b' then m.model_b else m.model_a end as chosen_model,
            case l.choice when 'b' then m.model_a else m.model_b end as rejected_model, p.run_id, r.round,
            case when l.choice in ('a', 'b') and l.margin is not null then row_number() over (
                partition by l.labeler, p.prompt_id, r.round, l.choice in ('a', 'b')
                order by l.margin desc nulls last, p.pair_id
            ) end as margin_rank
        from current_labels l
        join pairs p using (pair_id)
        join prompts q using (prompt_id)
        left join run_rounds r on r.run_id = p.run_id
        left join pair_models m on m.pair_id = p.pair_id
        where p.source <> 'eval' and ($everybody or l.labeler in (select unnest($labelers)))
    ),
    wanted as (select * from judged preferences where {where})
    select
        w.*, a.path as path_a, b.path as path_b,
        count(*) over (partition by w.prompt_id) as pairs_of_prompt
    from wanted w
    join image_files a on a.image_id = w.image_a
    join image_files b on b.image_id = w.image_b
    where {choices} and w.source <> 'eval' and ($everybody or w.labeler in (select unnest($labelers)))
    order by w.split, w.labeler, w.pair_id
"""
_CHOICES = {"pickapic": "w.choice <> 'skip'", "csv": "true", "jsonl": "true"}
_DECIDED = "w.choice in ('a', 'b')"


def selected_labels(store: PairStore, config: ExportConfig) -> pa.Table:
    """A row per label, with the columns that the formats need; sorted by split, labeler and pair.

    Raises:
        UsageError: if a labeler is unknown, the condition is not one expression, or no label is selected.
    """
    for labeler in config.labelers:
        require_training_labels(store, labeler)
    where = condition(config.where) if config.where else "true"
    query = _QUERY.format(where=where, choices=_CHOICES.get(config.format, _DECIDED))
    parameters = {"everybody": not config.labelers, "labelers": list(config.labelers)}
    try:
        rows = ask(store, query, 3600, parameters)
    except UsageError as error:
        raise UsageError(f"--where {config.where!r} cannot be used: {error}") from error
    if not rows.num_rows:
        cure = f" where {config.where}; relax --where" if config.where else "; `prefloop relabel` makes some"
        raise UsageError(f"there are no labels to export{cure}")
    return rows


def with_images(store: PairStore, rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bytes, bytes]]:
    """Each row with the bytes of image_a and image_b, checked against their ids."""
    for row in rows:
        yield row, _read_image(store, row["path_a"], row["image_a"]), _read_image(store, row["path_b"], row["image_b"])


def chosen_and_rejected(row: dict[str, Any], a: bytes, b: bytes) -> tuple[bytes, bytes]:
    """image_a and image_b in the order chosen, rejected."""
    return (a, b) if row["choice"] == "a" else (b, a)


def _read_image(store: PairStore, path: str, identity: str) -> bytes:
    try:
        data = (store.path / path).read_bytes()
    except OSError as error:
        raise IntegrityError(f"{store.path / path} cannot be read: {error.strerror}; {_hint(store)}") from error
    if content_bytes(data).hex() != identity.replace("-", ""):
        raise IntegrityError(f"{store.path / path} has changed since it was stored; {_hint(store)}")
    return data


def _hint(store: PairStore) -> str:
    return f"`prefloop store check --store {store.path}` lists all such images"
