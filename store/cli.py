"""`prefloop store`: look into a store and maintain it."""

import sys
from typing import Annotated

import typer

from ..core.cli import DEFAULT, JsonOption, StoreOption, say
from ..core.commands import App, renamed
from ..core.document import answer
from ..core.errors import IntegrityError

app = App(no_args_is_help=True, help="Look into a store, query it in SQL, check it, and import and export pairs.")


@app.command()
def ls(store: StoreOption = DEFAULT, as_json: JsonOption = False) -> None:
    """List the runs of a store with what each added and how long it took, and its models, scorers and labelers.

    Example: prefloop store ls --store prefloop-store
    """
    from .listing import for_terminal, listing
    from .pairstore import PairStore
    from .query import json_rows, write

    tables = listing(PairStore.open(store))
    if as_json:
        answer({name: json_rows(table) for name, table in tables.items()})
        return
    for name, table in tables.items():
        say(name)
        sys.stdout.flush()
        write(for_terminal(table) if name == "runs" else table, "table", sys.stdout.buffer)
        sys.stdout.buffer.flush()


@app.command()
def stats(store: StoreOption = DEFAULT, as_json: JsonOption = False) -> None:
    """Count the rows of a store, and the bytes it takes.

    Example: prefloop store stats --store prefloop-store --json
    """
    from .pairstore import PairStore

    opened = PairStore.open(store)
    tables = ("prompts", "models", "images", "generations", "pairs", "scores", "labels", "runs")
    counts = ", ".join(f"(select count(*) from {table}) as {table}" for table in tables)
    row = opened.sql(
        f"select {counts}, (select coalesce(sum(n_bytes), 0)::bigint from images) as image_bytes"
    ).to_pylist()[0]
    row["database_bytes"] = opened.database.stat().st_size
    if as_json:
        answer(row)
    else:
        for name, value in row.items():
            say(f"{name:<16}{value:>14,}")


@app.command()
def agreement(
    store: StoreOption = DEFAULT,
    evaluations: Annotated[
        bool, typer.Option("--evaluations", help="Also compare the labelers of evaluations, eval:SCORER.")
    ] = False,
    by_round: Annotated[bool, typer.Option("--by-round", help="Print a row for each round of a loop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare labelers with each other: how often they agree, with and without ties, and Cohen's kappa, with 95 % intervals.

    Every prompt weighs the same, and intervals are over prompts; fewer than ten have none.

    Example: prefloop store agreement --store prefloop-store
    """
    from .agreement import agreement as compared
    from .agreement import for_terminal
    from .pairstore import PairStore
    from .query import WIDTH, json_rows, write

    table = compared(PairStore.open(store), evaluations=evaluations, by_round=by_round)
    if as_json:
        answer(json_rows(table))
        return
    write(for_terminal(table), "table", sys.stdout.buffer, WIDTH)
    sys.stdout.buffer.flush()


@app.command(cls=renamed({"--pictures": "--images", "--no-pictures": "--no-images"}))
def check(
    store: StoreOption = DEFAULT,
    images: Annotated[bool, typer.Option(help="Read every image file and compare its hash.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Verify references, images and the journal. Exit code 5 if there is a problem.

    Example: prefloop store check --store prefloop-store
    """
    from dataclasses import asdict

    from .check import check as check_store
    from .journal import parts
    from .pairstore import PairStore
    from .parts import has_checksum

    opened = PairStore.open(store)
    problems = check_store(opened, images=images)
    n = sum(not has_checksum(name) for name in parts(opened.journal))
    if as_json:
        answer({"problems": [asdict(problem) for problem in problems], "parts_without_checksum": n})
    else:
        for problem in problems:
            say(f"{problem.what}: {problem.where} ({problem.n})")
    if n and not as_json:
        say(
            f"{n} journal parts of an earlier prefloop have no checksum; `prefloop store compact --store {store}` adds it"
        )
    if any(problem.what.endswith(("image", "journal part")) for problem in problems):
        cure = "restore missing and damaged files from a backup"
    else:
        cure = f"`prefloop store rebuild --store {store}` builds the tables again from the journal"
    if problems:
        n = len(problems)
        raise IntegrityError(f"{n} kind{'s' * (n > 1)} of problem in {store}; {cure}")
    if not as_json:
        say(f"{store} is intact")


@app.command()
def rebuild(
    store: StoreOption = DEFAULT,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Continue without missing journal parts; their rows are lost.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Build the database again from the journal; the old one is kept as pairs.duckdb.old.

    Example: prefloop store rebuild --store prefloop-store
    """
    from .pairstore import PairStore
    from .rebuild import rebuild as rebuild_store

    rebuilt = rebuild_store(PairStore(store), allow_missing=allow_missing)
    PairStore.open(store)
    if not rebuilt.compared:
        line = "prefloop: no previous database could be read, so it is not known whether journal parts are missing"
        say(f"{line}; compare the counts of `prefloop store stats --store {store}` with a backup", err=True)
    if as_json:
        answer(
            {
                "parts": rebuilt.n_parts,
                "missing": rebuilt.missing,
                "compared": rebuilt.compared,
                "kept": rebuilt.kept,
            }
        )
        return
    line = f"built {store / 'pairs.duckdb'} from {rebuilt.n_parts} journal parts"
    if gone := rebuilt.missing:
        line += f", without {len(gone)} missing part{'s' * (len(gone) > 1)}: {', '.join(gone)}"
    say(line + (f"; the old one is kept as {rebuilt.kept}" if rebuilt.kept else ""))
