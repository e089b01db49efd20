"""Proof that a store is whole: references, pictures, and the journal against the tables."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import duckdb

from ..core.ids import image_id
from . import journal
from .ingest import taken_parts
from .pairstore import PairStore
from .parts import damage, missing
from .rebuild import make_database

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

    Others may go on writing: tables and journal are compared as of one moment, and pictures are read after the rows that
    mention them.

    Args:
        pictures: also read every picture and compare its sha256 with its id.
    """
    place = store.path if os.access(store.path, os.W_OK) else None  # None: the system's folder for temporary files
    with TemporaryDirectory(prefix=".check-", dir=place) as folder:
        again = PairStore(Path(folder))
        again.journal.mkdir()
        with store.session() as connection:  # nobody takes or compacts parts meanwhile
            taken = taken_parts(connection)
            found = journal.parts(store.journal)
            for name in found:
                _link(store.journal / name, again.journal / name)
            damaged = {name for name in found.keys() - taken if damage(again.journal / name)}
            waiting = {name: found[name] for name in found.keys() - taken - damaged}
            problems = _missing_references(connection, again.journal, waiting)
            ours = _hashes(connection)
            images = connection.execute("select image_id, path from image_files order by image_id").fetchall()
        damaged |= {name for name in found.keys() & taken if damage(again.journal / name)}
        good = {name: table for name, table in found.items() if name not in damaged}
        problems += _listed("journal part damaged", sorted(damaged))
        problems += _listed("journal part gone", missing(again.journal, taken - damaged, good))
        # the tables must hold what a database made from the journal alone holds
        make_database(again.path, {name: table for name, table in good.items() if name in taken})
        theirs = logical_hashes(again)
    problems += [Problem("table differs from its journal", table, 1) for table in ours if ours[table] != theirs[table]]
    return problems + (_picture_problems(store, images) if pictures else [])


def _link(part: Path, copy: Path) -> None:
    """A second name for a part, which stays when the journal is compacted."""
    try:
        os.link(part, copy)
    except OSError:  # on another disk, or one without hard links
        shutil.copyfile(part, copy)


def _missing_references(
    connection: duckdb.DuckDBPyConnection, folder: Path, waiting: Mapping[str, str]
) -> list[Problem]:
    """Rows that mention what is neither in the tables nor in a part that waits to be taken into them."""
    problems = []
    for table, column, target, key in _REFERENCES:
        keys, paths = (
            f"select {key} from {target}",
            [str(folder / name) for name, of in waiting.items() if of == target],
        )
        if paths:
            keys += f" union all select {key} from read_parquet($paths)"
        query = f"select count(*) from {table} t anti join ({keys}) r on t.{column} = r.{key}"
        ((n,),) = connection.execute(query, {"paths": paths} if paths else None).fetchall()
        if n:
            problems.append(Problem("missing reference", f"{table}.{column} → {target}", n))
    return problems


def _picture_problems(store: PairStore, images: list[tuple[UUID, str]]) -> list[Problem]:
    gone, changed = [], []
    for identity, path in images:
        try:
            data = (store.path / path).read_bytes()
        except OSError:
            gone.append(path)
            continue
        if image_id(data) != identity:
            changed.append(path)
    return _listed("picture gone", gone) + _listed("picture changed", changed)


def _listed(what: str, names: list[str]) -> list[Problem]:
    return [Problem(what, ", ".join(names[:3]), len(names))] if names else []


def logical_hashes(store: PairStore) -> dict[str, str]:
    """A hash of each table's rows, whatever their order."""
    with store.session() as connection:
        return _hashes(connection)


def _hashes(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    return {table: _table_hash(connection, table) for table in journal.TABLES}


def _table_hash(connection: duckdb.DuckDBPyConnection, table: str) -> str:
    ((n, combined),) = connection.execute(f"select count(*), bit_xor(md5_number(t::varchar)) from {table} t").fetchall()
    return f"{n}:{combined}"
