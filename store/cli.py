"""`prefloop store`: look into a store, ask it in SQL, prove it whole."""

import json
import sys
from typing import Annotated

import typer

from ..core.cli import DEFAULT, StoreOption, say
from ..core.errors import IntegrityError
from .pairstore import PairStore

app = typer.Typer(no_args_is_help=True, help="Look into a store, ask it in SQL, prove it whole; pairs in and out.")


@app.command()
def ls(store: StoreOption = DEFAULT, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """List the runs, models, scorers and labelers of a store.

    Example: prefloop store ls --store prefloop-store
    """
    from .query import write

    opened = PairStore.open(store)
    queries = {
        "runs": "select kind, status, started, error from runs order by started",
        "models": """select m.name, count(g.generation_id) as images, m.model_id
            from models m left join generations g using (model_id) group by all order by m.name""",
        "scorers": """select s.scorer, count(c.image_id) as scores
            from scorers s left join scores c using (scorer) group by all order by s.scorer""",
        "labelers": """select r.labeler, r.kind, count(l.pair_id) as labels, count(*) filter (where l.choice = 'tie') as ties
            from labelers r left join current_labels l using (labeler) group by all order by r.labeler""",
    }
    answers = {what: opened.sql(sql) for what, sql in queries.items()}
    if as_json:
        say(json.dumps({what: answer.to_pylist() for what, answer in answers.items()}, default=str, indent=1))
        return
    for what, answer in answers.items():
        say(what)
        sys.stdout.flush()
        write(answer, "table", sys.stdout.buffer)
        sys.stdout.buffer.flush()


@app.command()
def stats(store: StoreOption = DEFAULT, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Count what a store holds.

    Example: prefloop store stats --store prefloop-store --json
    """
    opened = PairStore.open(store)
    tables = ("prompts", "models", "images", "generations", "pairs", "scores", "labels", "runs")
    counts = ", ".join(f"(select count(*) from {table}) as {table}" for table in tables)
    row = opened.sql(
        f"select {counts}, (select coalesce(sum(n_bytes), 0)::bigint from images) as image_bytes"
    ).to_pylist()[0]
    row["database_bytes"] = opened.database.stat().st_size
    if as_json:
        say(json.dumps(row))
    else:
        for name, value in row.items():
            say(f"{name:<16}{value:>14,}")


@app.command()
def agreement(
    store: StoreOption = DEFAULT, as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False
) -> None:
    """Compare labelers with one another: how often they agree, with ties and without, and Cohen's kappa.

    Example: prefloop store agreement --store prefloop-store
    """
    from .agreement import agreement as compared
    from .query import write

    write(compared(PairStore.open(store)), "json" if as_json else "table", sys.stdout.buffer)
    sys.stdout.buffer.flush()


@app.command()
def check(
    store: StoreOption = DEFAULT,
    pictures: Annotated[bool, typer.Option(help="Read every picture and compare its hash.")] = True,
) -> None:
    """Prove that references, pictures and journal are whole. Exit code 5 where they are not.

    Example: prefloop store check --store prefloop-store
    """
    from .check import check as check_store
    from .journal import parts
    from .parts import has_checksum

    opened = PairStore.open(store)
    problems = check_store(opened, pictures=pictures)
    for problem in problems:
        say(f"{problem.what}: {problem.where} ({problem.n})")
    if n := sum(not has_checksum(name) for name in parts(opened.journal)):
        say(f"{n} journal parts of an earlier prefloop carry no checksum; `prefloop store compact` adds it")
    if any(problem.what.startswith(("picture", "journal")) for problem in problems):
        cure = "pictures and parts that are gone or damaged must come from a backup"
    else:
        cure = f"`prefloop store rebuild --store {store}` makes the tables again from the journal"
    if problems:
        raise IntegrityError(f"{len(problems)} kinds of problem in {store}; {cure}")
    say(f"{store} is whole")


@app.command()
def rebuild(
    store: StoreOption = DEFAULT,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Go on without journal parts that are gone; their rows are lost.")
    ] = False,
) -> None:
    """Make the database again from the journal; the one before is kept as pairs.duckdb.old.

    Example: prefloop store rebuild --store prefloop-store
    """
    from .rebuild import rebuild as rebuild_store

    made = rebuild_store(PairStore(store), allow_missing=allow_missing)
    PairStore.open(store)
    if not made.compared:
        line = "prefloop: neither the database nor the one kept before it could be read, so a rebuild cannot tell whether journal parts are gone"
        say(f"{line}; compare the counts of `prefloop store stats --store {store}` with a backup", err=True)
    line = f"made {store / 'pairs.duckdb'} from {made.n_parts} journal parts"
    if gone := made.missing:
        line += f", without {len(gone)} part{'s that are' if len(gone) > 1 else ' that is'} gone: {', '.join(gone)}"
    say(line + (f"; the one before is {made.kept}" if made.kept else ""))
