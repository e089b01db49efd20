"""Which pairs are trained on: any SQL over `preferences`, put in an order that is always the same."""

import hashlib
import random
from dataclasses import dataclass
from uuid import UUID

from ..store import IntegrityError, PairStore, UsageError
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
    """Probability of the label, as its labeler stored it; 1 where it stored none."""
    size: tuple[int, int] = (0, 0)
    """Height and width in pixels, the geometric mean of the two images'."""


@dataclass(frozen=True)
class Pairs:
    train: list[Pair]
    validation: list[Pair]
    """Of prompts that no training pair has."""

    def fingerprint(self) -> str:
        """Hash of the ordered training list: pairs and which image is chosen."""
        digest = hashlib.sha256()
        for pair in self.train:
            digest.update(pair.pair_id.bytes + pair.chosen.bytes + pair.labeler.encode() + str(pair.p_chosen).encode())
        return digest.hexdigest()

    def image_paths(self) -> dict[UUID, str]:
        every = self.train + self.validation
        return {p.chosen: p.chosen_path for p in every} | {p.rejected: p.rejected_path for p in every}

    def prompts(self) -> dict[UUID, str]:
        return {pair.prompt_id: pair.prompt for pair in self.train + self.validation}


_QUERY = """
    select p.*, c.path as chosen_path, r.path as rejected_path,
        sqrt(ci.height * ri.height) as height, sqrt(ci.width * ri.width) as width
    from (
        select * from (select * from preferences where labeler in ({labelers}) and source <> 'eval') where {where}
    ) p
    join image_files c on c.image_id = p.chosen
    join image_files r on r.image_id = p.rejected
    join images ci on ci.image_id = p.chosen
    join images ri on ri.image_id = p.rejected
    order by p.labeler, p.pair_id
"""


def select_pairs(store: PairStore, config: TrainConfig) -> Pairs:
    """The labelled pairs that the settings ask for; ties and skips are not among them.

    Raises:
        UsageError: where a labeler is unknown or has no labels, the condition is no SQL, or nothing is left.
        IntegrityError: where a labeler's scores come from two versions of a scorer.
    """
    query = "select r.labeler, count(l.pair_id) from labelers r left join current_labels l using (labeler) group by all"
    known: dict[str, int] = dict(store.rows(query))
    for labeler in config.labelers:
        if labeler not in known:
            there = ", ".join(sorted(known)) or "none yet; `prefloop relabel` makes labels"
            raise UsageError(f"no labeler is called {labeler!r}; there are {there}")
        if not known[labeler]:
            raise UsageError(f"the labeler {labeler!r} has no labels; `prefloop relabel` makes some")
    _refuse_mixed(store, tuple(config.labelers))
    labelers = ", ".join("'" + labeler.replace("'", "''") + "'" for labeler in config.labelers)
    # a condition that closes a bracket of ours is no SQL there: nothing but the inner rows can be selected
    where = f"{config.where}\n" if config.where else "true"
    try:
        answer = ask(store, _QUERY.format(labelers=labelers, where=where))
    except UsageError as error:
        raise UsageError(f"--where {config.where!r} cannot be used: {error}") from error
    rows: dict[str, list[Pair]] = {"train": [], "validation": []}
    for row in answer.to_pylist():
        rows[row["split"]].append(
            Pair(
                UUID(row["pair_id"]),
                UUID(row["prompt_id"]),
                row["prompt"],
                UUID(row["chosen"]),
                UUID(row["rejected"]),
                row["chosen_path"],
                row["rejected_path"],
                row["labeler"],
                1.0 if row["p_chosen"] is None else row["p_chosen"],
                (round(row["height"]), round(row["width"])),
            )
        )
    if not rows["train"]:
        why = f" where {config.where}" if config.where else ""
        raise UsageError(
            f"{', '.join(config.labelers)} decided no training pair{why}; loosen --where or label more pairs"
        )
    if config.max_train_samples is not None and config.max_train_samples < len(rows["train"]):
        kept = sorted(random.Random(config.seed).sample(range(len(rows["train"])), config.max_train_samples))
        rows["train"] = [rows["train"][at] for at in kept]
    return Pairs(rows["train"], rows["validation"])


def _refuse_mixed(store: PairStore, labelers: tuple[str, ...]) -> None:
    query = """
        select name, count(distinct scorer), string_agg(distinct scorer, ', ')
        from (select unnest(cast(config->'scorers' as varchar[])) as scorer from labelers
              where labeler in (select unnest($labelers)) and json_exists(config, '$.scorers'))
        join (select scorer, name from scorers) using (scorer)
        group by name having count(distinct scorer) > 1"""
    for name, _, both in store.rows(query, {"labelers": list(labelers)}):
        raise IntegrityError(f"the labels come from two versions of {name}: {both}; train on those of one")
