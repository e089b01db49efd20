"""`prefloop store query` and `prefloop store schema`."""

import sys
from typing import Annotated, Optional, get_args

import typer

from ...core.cli import DEFAULT, JsonOption, StoreOption, completing, say
from ...core.document import answer
from ...core.errors import UsageError
from .. import completion


def _saved_names() -> list[str]:
    from .saved import saved_queries

    return list(saved_queries())


def _formats() -> tuple[str, ...]:
    from ..query import Format

    return get_args(Format)


def query(
    sql: Annotated[Optional[str], typer.Argument(help="A query, or - to read it from stdin.")] = None,
    store: StoreOption = DEFAULT,
    named: Annotated[
        Optional[str],
        typer.Option(
            "--name", help="Name of a saved query; see --list.", autocompletion=completing(lambda _: _saved_names())
        ),
    ] = None,
    arguments: Annotated[
        Optional[list[str]],
        typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="Value of $NAME in the query: JSON, else text."),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the saved queries, and exit.")] = False,
    format_: Annotated[
        Optional[str],
        typer.Option(
            "--format",
            autocompletion=completing(lambda _: _formats()),
            help="table, json, jsonl, csv or parquet. Table on a terminal, else JSON.",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds after which the query is interrupted.")] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Query a store in SQL. A query can only read, and only the store.

    Example: prefloop store query "select labeler, count(*) from preferences where margin > \\$least group by all" -p least=1
    """
    from ..pairstore import PairStore
    from ..query import ask, json_rows, write
    from .parameters import parameters
    from .saved import saved_query

    if as_json and format_ not in (None, "json"):
        raise UsageError(f"--json and --format {format_} are two formats; leave out one")
    chosen = "json" if as_json else format_ or ("table" if sys.stdout.isatty() else "json")
    if chosen not in _formats():
        raise UsageError(f"unknown format {chosen!r}; choose from {', '.join(_formats())}")
    if sum((sql is not None, named is not None, listed)) != 1:
        raise UsageError("give a query, or --name of a saved query, or --list to see those")
    values = parameters(arguments or [])
    if listed:
        result = _listed()
    elif named is not None:
        saved = saved_query(named)
        result = ask(PairStore.open(store), saved.sql, timeout, saved.values(values))
    else:
        assert sql is not None
        result = ask(PairStore.open(store), _from_stdin() if sql == "-" else sql, timeout, values)
    if as_json:
        answer(json_rows(result))
        return
    write(result, chosen, sys.stdout.buffer)
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
            "name": saved.name,
            "description": saved.description,
            "parameters": ", ".join(f"{name}={parameter.default}" for name, parameter in saved.parameters.items()),
        }
        for saved in saved_queries().values()
    ]
    return pa.Table.from_pylist(rows)


def schema(
    name: Annotated[
        Optional[str],
        typer.Argument(help="Table or view; all if omitted.", autocompletion=completing(completion.tables)),
    ] = None,
    store: StoreOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Describe the tables and views of a store and their columns.

    Example: prefloop store schema preferences --store prefloop-store
    """
    from dataclasses import asdict

    from ..pairstore import PairStore
    from .describe import describe

    relations = describe(PairStore.open(store), name)
    if as_json:
        answer([asdict(relation) for relation in relations])
        return
    for number, relation in enumerate(relations):
        say(("\n" if number else "") + f"{relation.kind} {relation.name}: {relation.comment or ''}".rstrip(": "))
        for column in relation.columns:
            line = f"  {column.name:<16}{column.type:<11}{'key' if column.key else '':<5}{column.comment or ''}"
            say(line.rstrip())
