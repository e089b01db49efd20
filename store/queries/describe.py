"""Describe the schema: tables, views and macros, their columns and comments."""

from dataclasses import dataclass

import duckdb

from ...core.errors import UsageError
from ..pairstore import PairStore
from ..rebuild import schema_sql

_RELATIONS = """
    select table_name as name, 'table' as kind, comment from duckdb_tables() where not internal and database_name = current_database()
    union all
    select view_name, 'view', comment from duckdb_views() where not internal and database_name = current_database()
    union all
    select function_name || '(' || array_to_string(parameters, ', ') || ')', 'macro', comment
    from duckdb_functions()
    where not internal and database_name = current_database() and function_type = 'table_macro'
"""
_COLUMNS = """
    select
        c.table_name as name, c.column_name as column, lower(c.data_type) as type,
        coalesce(list_contains(k.constraint_column_names, c.column_name), false) as key, c.comment
    from duckdb_columns() c
    left join duckdb_constraints() k
        on k.database_name = c.database_name and k.table_name = c.table_name and k.constraint_type = 'PRIMARY KEY'
    where not c.internal and c.database_name = current_database()
    order by c.table_name, c.column_index
"""


@dataclass(frozen=True)
class Column:
    name: str
    type: str
    key: bool
    """Whether it is part of the primary key."""
    comment: str | None


@dataclass(frozen=True)
class Relation:
    name: str
    kind: str
    comment: str | None
    columns: list[Column]


def describe(store: PairStore, name: str | None = None) -> list[Relation]:
    """Tables, views and macros of the store's database in the order of the schema, or only the one with a name.

    Raises:
        UsageError: if the name is unknown.
    """
    with store.session() as connection:
        relations = _relations(connection)
    schema = schema_sql()
    relations.sort(key=lambda relation: schema.find(f"{relation.kind} {_bare(relation)}"))
    if name is None:
        return relations
    chosen = [relation for relation in relations if _bare(relation) == name]
    if not chosen:
        raise UsageError(f"unknown table or view {name!r}; choose from {', '.join(map(_bare, relations))}")
    return chosen


def _bare(relation: Relation) -> str:
    """The name without a macro's parameters."""
    return relation.name.split("(")[0]


def _relations(connection: duckdb.DuckDBPyConnection) -> list[Relation]:
    columns: dict[str, list[Column]] = {}
    for relation, name, type_, key, comment in connection.execute(_COLUMNS).fetchall():
        columns.setdefault(relation, []).append(Column(name, type_, key, comment))
    rows = connection.execute(_RELATIONS).fetchall()
    return [Relation(name, kind, comment, columns.get(name, [])) for name, kind, comment in rows]
