"""Proof that a store is whole: references, pictures, and the journal against the tables."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from . import journal
from .ids import image_id
from .pairstore import PairStore

_REFERENCES = (
    ("generations", "prompt_id", "prompts", "prompt_id"),
    ("generations", "model_id", "models", "model_id"),
    ("generations", "image_id", "images", "image_id"),
    ("pairs", "prompt_id", "prompts", "prompt_id"),
    ("pairs", "image_a", "images", "image_id"),
    ("pairs", "image_b", "images", "image_id"),
    ("scores", "image_id", "images", "image_id"),
    ("scores", "prompt_id", "prompts", "prompt_id"),
    ("scores", "scorer", "scorers", "scorer"),
    ("labels", "pair_id", "pairs", "pair_id"),
    ("labels", "labeler", "labelers", "labeler"),
)


@dataclass(frozen=True)
class Problem:
    what: str
    where: str
    n: int


def check(store: PairStore, *, pictures: bool = True) -> list[Problem]:
    """Everything that is not as it should be; an empty list is a whole store.

    Args:
        pictures: also read every picture and compare its sha256 with its id.
    """
    problems = []
    for table, column, target, key in _REFERENCES:
        ((n,),) = store.rows(f"select count(*) from {table} t anti join {target} r on t.{column} = r.{key}")
        if n:
            problems.append(Problem("missing reference", f"{table}.{column} → {target}", n))
    problems += _journal_problems(store)
    if pictures:
        problems += _picture_problems(store)
    return problems


def _journal_problems(store: PairStore) -> list[Problem]:
    problems = []
    found = journal.parts(store.journal)
    taken = {name for (name,) in store.rows("select name from parts")}
    if gone := taken - found.keys():
        problems.append(Problem("journal part gone", ", ".join(sorted(gone)[:3]), len(gone)))
    # the tables must hold what a database made from the journal alone holds
    with TemporaryDirectory(prefix=".check-", dir=store.path) as folder:
        again = PairStore(Path(folder))
        for part in ("journal", "images"):
            (again.path / part).symlink_to((store.path / part).resolve())
        again.rebuild()
        ours, theirs = logical_hashes(store), logical_hashes(again)
    problems += [Problem("table differs from its journal", table, 1) for table in ours if ours[table] != theirs[table]]
    return problems


def _picture_problems(store: PairStore) -> list[Problem]:
    missing, changed = [], []
    for identity, path in store.rows("select image_id, path from image_files order by image_id"):
        try:
            data = (store.path / path).read_bytes()
        except OSError:
            missing.append(path)
            continue
        if image_id(data) != identity:
            changed.append(path)
    return [
        Problem(what, ", ".join(paths[:3]), len(paths))
        for what, paths in (("picture gone", missing), ("picture changed", changed))
        if paths
    ]


def logical_hashes(store: PairStore) -> dict[str, str]:
    """A hash of each table's rows, whatever their order."""
    with store.session() as connection:
        return {table: _table_hash(connection, table) for table in journal.TABLES}


def _table_hash(connection: duckdb.DuckDBPyConnection, table: str) -> str:
    ((n, combined),) = connection.execute(f"select count(*), bit_xor(md5_number(t::varchar)) from {table} t").fetchall()
    return f"{n}:{combined}"
