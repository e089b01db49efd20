"""What there is to ask about: tables, views and macros with their columns and what they mean."""

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
    """Whether it is one of those that tell the table's rows apart."""
    comment: str | None


@dataclass(frozen=True)
class Relation:
    name: str
    kind: str
    comment: str | None
    columns: list[Column]


def describe(store: PairStore, name: str | None = None) -> list[Relation]:
    """Tables, views and macros as the store's own database has them, in the order of the schema; or the one of a name.

    A database made by an earlier prefloop may hold no comments: those of today stand in for them.

    Raises:
        UsageError: where there is none of that name.
    """
    today = _today()
    with store.session() as connection:
        found = {relation.name: relation for relation in _relations(connection)}
    order = [*(one for one in today if one in found), *(one for one in sorted(found) if one not in today)]
    told = [_with_comments(found[one], today.get(one)) for one in order]
    if name is None:
        return told
    chosen = [one for one in told if one.name.split("(")[0] == name]
    if not chosen:
        there = ", ".join(one.name.split("(")[0] for one in told)
        raise UsageError(f"there is no table or view {name!r}; there are {there}")
    return chosen


def _relations(connection: duckdb.DuckDBPyConnection) -> list[Relation]:
    columns: dict[str, list[Column]] = {}
    for relation, name, kind, key, comment in connection.execute(_COLUMNS).fetchall():
        columns.setdefault(relation, []).append(Column(name, kind, key, comment))
    rows = connection.execute(_RELATIONS).fetchall()
    return [Relation(name, kind, comment, columns.get(name, [])) for name, kind, comment in rows]


def _today() -> dict[str, Relation]:
    """As a database made now has them."""
    text = schema_sql()
    with duckdb.connect() as connection:
        connection.execute(text)
        found = {relation.name: relation for relation in _relations(connection)}
    return dict(sorted(found.items(), key=lambda item: text.index(f" {item[0].split('(')[0]}")))


def _with_comments(relation: Relation, today: Relation | None) -> Relation:
    if today is None:
        return relation
    comments = {column.name: column.comment for column in today.columns}
    columns = [
        Column(column.name, column.type, column.key, column.comment or comments.get(column.name))
        for column in relation.columns
    ]
    return Relation(relation.name, relation.kind, relation.comment or today.comment, columns)
