"""Verify a store: references, image files, and the tables against the journal."""

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
from .ingest import has_table, ingested_parts
from .pairstore import PairStore
from .parts import damage, missing
from .rebuild import build_database

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
    ("evaluations", "generation_id", "generations", "generation_id"),
)


@dataclass(frozen=True)
class Problem:
    what: str
    where: str
    n: int


def check(store: PairStore, *, images: bool = True) -> list[Problem]:
    """Every problem found; the list is empty if the store is intact.

    Other processes may go on writing: tables and journal are compared as of one moment, and images are read after the rows
    that refer to them.

    Args:
        images: also read every image file and compare its sha256 with its id.
    """
    parent = store.path if os.access(store.path, os.W_OK) else None  # None: the system's folder for temporary files
    with TemporaryDirectory(prefix=".check-", dir=parent) as folder:
        rebuilt = PairStore(Path(folder))
        rebuilt.journal.mkdir()
        with store.session() as connection:  # no process ingests or compacts parts meanwhile
            ingested = ingested_parts(connection)
            parts = journal.parts(store.journal)
            for name in parts:
                _link(store.journal / name, rebuilt.journal / name)
            damaged = {name for name in parts.keys() - ingested if damage(rebuilt.journal / name)}
            waiting = {name: parts[name] for name in parts.keys() - ingested - damaged}
            problems = _missing_references(connection, rebuilt.journal, waiting)
            hashes = _hashes(connection)
            files = connection.execute("select image_id, path from image_files order by image_id").fetchall()
        damaged |= {name for name in parts.keys() & ingested if damage(rebuilt.journal / name)}
        intact = {name: table for name, table in parts.items() if name not in damaged}
        problems += _listed("damaged journal part", sorted(damaged))
        problems += _listed("missing journal part", missing(rebuilt.journal, ingested - damaged, intact))
        # the tables must hold what a database built from the journal alone holds
        build_database(rebuilt.path, {name: table for name, table in intact.items() if name in ingested})
        expected = logical_hashes(rebuilt)
    problems += [
        Problem("table differs from its journal", name, 1) for name in hashes if hashes[name] != expected[name]
    ]
    return problems + (_image_problems(store, files) if images else [])


def _link(part: Path, copy: Path) -> None:
    """Give a part a second name, which stays when the journal is compacted."""
    try:
        os.link(part, copy)
    except OSError:  # on another disk, or one without hard links
        shutil.copyfile(part, copy)


def _missing_references(
    connection: duckdb.DuckDBPyConnection, folder: Path, waiting: Mapping[str, str]
) -> list[Problem]:
    """Rows that refer to something that is neither in the tables nor in a part that waits to be ingested."""
    problems = []
    for table, column, target, key in _REFERENCES:
        keys = f"select {key} from {target}"
        paths = [str(folder / name) for name, part_table in waiting.items() if part_table == target]
        if paths:
            keys += f" union all select {key} from read_parquet($paths)"
        query = f"select count(*) from {table} t anti join ({keys}) r on t.{column} = r.{key}"
        ((n,),) = connection.execute(query, {"paths": paths} if paths else None).fetchall()
        if n:
            problems.append(Problem("missing reference", f"{table}.{column} → {target}", n))
    return problems


def _image_problems(store: PairStore, files: list[tuple[UUID, str]]) -> list[Problem]:
    gone, changed = [], []
    for identity, path in files:
        try:
            data = (store.path / path).read_bytes()
        except OSError:
            gone.append(path)
            continue
        if image_id(data) != identity:
            changed.append(path)
    return _listed("missing image", gone) + _listed("changed image", changed)


def _listed(what: str, names: list[str]) -> list[Problem]:
    return [Problem(what, ", ".join(names[:3]), len(names))] if names else []


def logical_hashes(store: PairStore) -> dict[str, str]:
    """A hash of each table's rows, independent of their order."""
    with store.session() as connection:
        return _hashes(connection)


def _hashes(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    return {table: _table_hash(connection, table) for table in journal.TABLES}


def _table_hash(connection: duckdb.DuckDBPyConnection, table: str) -> str:
    if not has_table(connection, table):
        return "0:None"  # as an empty one
    ((n, combined),) = connection.execute(f"select count(*), bit_xor(md5_number(t::varchar)) from {table} t").fetchall()
    return f"{n}:{combined}"
