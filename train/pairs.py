"""The pairs that are trained on: any SQL over `preferences`, in a fixed order."""

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..core.id_columns import key_bytes, keys_of
from ..store import IntegrityError, PairStore, UsageError
from ..store.condition import condition
from ..store.images import stored_at
from ..store.labelers import require_training_labels
from ..store.lazy_rows import LazyRows
from ..store.query import ask
from .config import TrainConfig


@dataclass(frozen=True)
class Pair:
    pair_id: UUID
    prompt_id: UUID
    prompt: str
    chosen: UUID
    rejected: UUID
    chosen_path: str
    rejected_path: str
    labeler: str
    p_chosen: float = 1.0
    """Probability of the label, as its labeler stored it; 1 if it stored none."""
    size: tuple[int, int] = (0, 0)
    """Height and width in pixels, the geometric mean over the two images."""


@dataclass(frozen=True)
class Pairs:
    train: LazyRows[Pair]
    validation: LazyRows[Pair]
    """Pairs of held-out prompts, which no training pair has."""
    texts: Mapping[bytes, str]
    """Prompts by the 16 bytes of their id; there may be others among them."""

    def __len__(self) -> int:
        return len(self.train) + len(self.validation)

    def fingerprint(self) -> str:
        """Hash of the ordered training list: pairs and which image is chosen."""
        digest = hashlib.sha256()
        for batch in self.train.table.select(["pair_id", "chosen", "labeler", "p_chosen"]).to_batches(65_536):
            pair_id, chosen, labeler, p_chosen = batch.columns
            ids = np.concatenate([key_bytes(keys_of(pair_id)), key_bytes(keys_of(chosen))], axis=1)
            rows = zip(ids.view("V32").ravel().tolist(), labeler.to_pylist(), p_chosen.to_pylist(), strict=True)
            digest.update(b"".join([both + f"{name}{p}".encode() for both, name, p in rows]))
        return digest.hexdigest()

    def n_images(self) -> int:
        """Number of distinct images."""
        columns = [part.table[name] for part in (self.train, self.validation) for name in ("chosen", "rejected")]
        return len(pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.binary(16)).unique())

    def labelers(self) -> list[str]:
        """Names of the labelers whose labels are trained on."""
        return sorted(self.train.table["labeler"].unique().to_pylist())

    def prompts(self) -> dict[UUID, str]:
        """Texts of the prompts that have pairs, by id."""
        columns = [part.table["prompt_id"] for part in (self.train, self.validation)]
        ids = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.binary(16)).unique()
        return {UUID(bytes=identity): self.texts[identity] for identity in ids.to_pylist()}


_QUERY = """
    select
        (p.split <> 'train')::integer as held_out, p.pair_id, p.prompt_id, p.chosen, p.rejected, c.format as chosen_format,
        r.format as rejected_format, p.labeler, coalesce(p.p_chosen, 1) as p_chosen,
        sqrt(c.height * r.height) as height, sqrt(c.width * r.width) as width
    from (
        select * from (
            select * from training_preferences where labeler in (select unnest($labelers))
        ) preferences
        where {where}
    ) p
    join images c on c.image_id = p.chosen
    join images r on r.image_id = p.rejected
    where p.labeler in (select unnest($labelers)) and p.source <> 'eval'
    order by held_out, p.labeler, p.pair_id
"""


def _pairs(rows: pa.Table, texts: Mapping[bytes, str]) -> LazyRows[Pair]:
    """Pairs from rows of the query.

    Args:
        texts: prompts by id.
    """

    def pair(
        pair_id: bytes,
        prompt_id: bytes,
        chosen: bytes,
        rejected: bytes,
        chosen_format: str,
        rejected_format: str,
        labeler: str,
        p_chosen: float,
        height: float,
        width: float,
    ) -> Pair:
        images = UUID(bytes=chosen), UUID(bytes=rejected)
        paths = stored_at(images[0], chosen_format), stored_at(images[1], rejected_format)
        size = round(height), round(width)
        ids = UUID(bytes=pair_id), UUID(bytes=prompt_id)
        return Pair(*ids, texts[prompt_id], *images, *paths, labeler, p_chosen, size)

    return LazyRows(rows, pair)


def select_pairs(store: PairStore, config: TrainConfig) -> Pairs:
    """The labelled pairs that the settings select, without ties and skips.

    Raises:
        UsageError: if a labeler is unknown or has no labels, the condition is not a single expression, or no pair is left.
        IntegrityError: if a labeler's scores come from two versions of a scorer.
    """
    for labeler in config.labeler_weights:
        require_training_labels(store, labeler)
    _refuse_mixed(store, tuple(config.labeler_weights))
    query = _QUERY.format(where=condition(config.where) if config.where else "true")
    try:
        rows = ask(store, query, 3600, {"labelers": list(config.labeler_weights)}, as_ids=True)
    except UsageError as error:
        raise UsageError(f"--where {config.where!r} cannot be used: {error}") from error
    texts = store.prompts_by_id(rows["prompt_id"])
    train, held_out = _split(rows, texts)
    if not train and held_out:
        raise UsageError(
            f"{', '.join(config.labeler_weights)} has {len(held_out)} decided pairs, all of prompts that are held out for "
            "validation, as one prompt in twenty is, by its text; label pairs of more prompts"
        )
    if not train:
        condition_text = f" where {config.where}; relax --where or" if config.where else ";"
        raise UsageError(
            f"{', '.join(config.labeler_weights)} has no decided training pairs{condition_text} label more pairs"
        )
    if config.max_train_samples is not None and config.max_train_samples < len(train):
        train = train.select(sorted(random.Random(config.seed).sample(range(len(train)), config.max_train_samples)))
    return Pairs(train, held_out, texts)


def _refuse_mixed(store: PairStore, labelers: tuple[str, ...]) -> None:
    query = """
        select name, count(distinct scorer), string_agg(distinct scorer, ', ')
        from (select unnest(cast(config->'scorers' as varchar[])) as scorer from labelers
              where labeler in (select unnest($labelers)) and json_exists(config, '$.scorers'))
        join (select scorer, name from scorers) using (scorer)
        group by name having count(distinct scorer) > 1"""
    for name, _, both in store.rows(query, {"labelers": list(labelers)}):
        raise IntegrityError(f"the labels come from two versions of {name}: {both}; train on the labels of one")


def _split(rows: pa.Table, texts: Mapping[bytes, str]) -> tuple[LazyRows[Pair], LazyRows[Pair]]:
    """Training pairs and pairs of held-out prompts, by the column held_out."""
    sides = rows["held_out"].to_numpy()
    if (sides[1:] < sides[:-1]).any():
        order = np.argsort(sides, kind="stable")
        rows, sides = rows.take(pa.array(order)), sides[order]
    ends = np.searchsorted(sides, [0, 1, 2]).tolist()
    columns = rows.drop_columns("held_out").combine_chunks()  # once, so that both are slices of it
    train, held_out = (_pairs(columns.slice(start, end - start), texts) for start, end in pairwise(ends))
    return train, held_out


def kept_rows(selected: Pairs, used: Pairs) -> pa.Table:
    """Both lists as one table for `kept_pairs`; held_out is 2 for pairs that were selected but are not used."""
    tables = []
    for held_out, (all_pairs, kept) in enumerate(
        ((selected.train, used.train), (selected.validation, used.validation))
    ):
        column = np.full(len(all_pairs), held_out, np.int32)
        if len(kept) < len(all_pairs):
            options = pc.SetLookupOptions(_label_keys(kept.table))
            column[
                ~pc.call_function("is_in", [_label_keys(all_pairs.table)], options).to_numpy(zero_copy_only=False)
            ] = 2
        tables.append(all_pairs.table.add_column(0, "held_out", pa.array(column)))
    return pa.concat_tables(tables)


def _label_keys(rows: pa.Table) -> pa.Array:
    """The pair and the labeler of each row, as one value."""
    columns = [rows["pair_id"].cast(pa.binary()), rows["labeler"].cast(pa.binary()), pa.scalar(b"", pa.binary())]
    return pc.call_function("binary_join_element_wise", columns).combine_chunks()


def kept_pairs(rows: pa.Table, texts: Mapping[bytes, str]) -> Pairs:
    """The used pairs of a table from `kept_rows`."""
    return Pairs(*_split(rows, texts), texts)
