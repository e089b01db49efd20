"""`prefloop store query` and `prefloop store schema`."""

import json
import sys
from typing import Annotated, Optional

import typer

from ...core.cli import DEFAULT, StoreOption, say
from ...core.errors import UsageError
from ..pairstore import PairStore


def query(
    sql: Annotated[Optional[str], typer.Argument(help="A query, or - to read it from stdin.")] = None,
    store: StoreOption = DEFAULT,
    named: Annotated[Optional[str], typer.Option("--name", help="A query that comes with prefloop.")] = None,
    given: Annotated[
        Optional[list[str]],
        typer.Option(
            "-p", "--parameter", metavar="NAME=VALUE", help="What $NAME is in the query; JSON values, else text."
        ),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the queries that come with prefloop, and end.")] = False,
    form: Annotated[
        Optional[str],
        typer.Option("--format", help="table, json, jsonl, csv or parquet. Table on a terminal, else JSON."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds after which the query is ended.")] = 60.0,
) -> None:
    """Ask a store in SQL. Nothing can be changed, and nothing but the store can be read.

    Example: prefloop store query "select labeler, count(*) from preferences where margin > \\$least group by all" -p least=1
    """
    from typing import get_args

    from ..query import Format, ask, write
    from .parameters import parameters
    from .saved import saved_query

    chosen = form or ("table" if sys.stdout.isatty() else "json")
    if chosen not in get_args(Format):
        raise UsageError(f"no format is called {chosen!r}; there are {', '.join(get_args(Format))}")
    if sum((sql is not None, named is not None, listed)) != 1:
        raise UsageError("give a query, or --name of one that comes with prefloop, or --list to see those")
    values = parameters(given or [])
    if listed:
        answer = _listed()
    elif named is not None:
        saved = saved_query(named)
        answer = ask(PairStore.open(store), saved.sql, timeout, saved.values(values))
    else:
        assert sql is not None
        answer = ask(PairStore.open(store), _from_stdin() if sql == "-" else sql, timeout, values)
    write(answer, chosen, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def _from_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise UsageError("the query on stdin is not UTF-8 text") from None


def _listed():
    import pyarrow as pa

    from .saved import saved_queries

    rows = [
        {
            "name": one.name,
            "answers": one.answers,
            "parameters": ", ".join(f"{name}={parameter.default}" for name, parameter in one.parameters.items()),
        }
        for one in saved_queries().values()
    ]
    return pa.Table.from_pylist(rows)


def schema(
    name: Annotated[Optional[str], typer.Argument(help="One table or view. All if not given.")] = None,
    store: StoreOption = DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Print the tables and views of a store, their columns, and what these mean.

    Example: prefloop store schema preferences --store prefloop-store
    """
    from dataclasses import asdict

    from .describe import describe

    relations = describe(PairStore.open(store), name)
    if as_json:
        say(json.dumps([asdict(relation) for relation in relations], indent=1))
        return
    for number, relation in enumerate(relations):
        say(("\n" if number else "") + f"{relation.kind} {relation.name}: {relation.comment or ''}".rstrip(": "))
        for column in relation.columns:
            line = f"  {column.name:<16}{column.type:<11}{'key' if column.key else '':<5}{column.comment or ''}"
            say(line.rstrip())
