"""`prefloop store`: look into a store, ask it in SQL, prove it whole; pairs in and out."""

import json
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from .errors import IntegrityError, PrefloopError, UsageError
from .pairstore import PairStore

app = typer.Typer(no_args_is_help=True, help="Look into a store, ask it in SQL, prove it whole; pairs in and out.")
StoreOption = Annotated[Path, typer.Option("--store", help="Folder of the store.")]
DEFAULT = Path("prefloop-store")
_IN_OUT = "Pairs in and out"
_UPKEEP = "Upkeep"


@app.command()
def ls(store: StoreOption = DEFAULT, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """List the runs, models, scorers and labelers of a store.

    Example: prefloop store ls --store prefloop-store
    """
    from .query import ask, write

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
    answers = {what: ask(opened, sql) for what, sql in queries.items()}
    if as_json:
        typer.echo(json.dumps({what: answer.to_pylist() for what, answer in answers.items()}, default=str, indent=1))
        return
    for what, answer in answers.items():
        typer.echo(what)
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
        typer.echo(json.dumps(row))
    else:
        for name, value in row.items():
            typer.echo(f"{name:<16}{value:>14,}")


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="A query, or - to read it from stdin.")],
    store: StoreOption = DEFAULT,
    form: Annotated[
        Optional[str],
        typer.Option("--format", help="table, json, jsonl, csv or parquet. Table on a terminal, else JSON."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds after which the query is ended.")] = 60.0,
) -> None:
    """Ask a store in SQL. Nothing can be changed, and nothing but the store can be read.

    Example: prefloop store query "select labeler, count(*) from preferences group by all"
    """
    from typing import get_args

    from .query import Format, ask, write

    chosen = form or ("table" if sys.stdout.isatty() else "json")
    if chosen not in get_args(Format):
        raise UsageError(f"no format is called {chosen!r}; there are {', '.join(get_args(Format))}")
    answer = ask(PairStore.open(store), sys.stdin.read() if sql == "-" else sql, timeout)
    write(answer, chosen, sys.stdout.buffer)
    sys.stdout.buffer.flush()


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

    problems = check_store(PairStore.open(store), pictures=pictures)
    for problem in problems:
        typer.echo(f"{problem.what}: {problem.where} ({problem.n})")
    if problems:
        raise IntegrityError(
            f"{len(problems)} kinds of problem in {store}; pictures and parts that are gone must come from a backup"
        )
    typer.echo(f"{store} is whole")


@app.command()
def rebuild(store: StoreOption = DEFAULT) -> None:
    """Make the database again from the journal.

    Example: prefloop store rebuild --store prefloop-store
    """
    if not (store / "journal").is_dir():
        raise PrefloopError(f"there is no store at {store}")
    n = PairStore(store).rebuild()
    PairStore.open(store)
    typer.echo(f"made {store / 'pairs.duckdb'} from {n} journal parts")


@app.command("import", rich_help_panel=_IN_OUT)
def import_(
    source: Annotated[str, typer.Argument(help="A file, a folder, or a data set's hub id.")],
    store: StoreOption = DEFAULT,
    form: Annotated[
        str,
        typer.Option(
            "--format", help="auto, pickapic, preferences, hpd, imagereward, folders, jsonl, webdataset or table."
        ),
    ] = "auto",
    columns: Annotated[
        Optional[list[str]], typer.Option("--map", help="OURS=THEIRS: which column is prompt, chosen, rejected, …")
    ] = None,
    labeler: Annotated[Optional[str], typer.Option(help="Who decided, where the data name nobody.")] = None,
    limit: Annotated[Optional[int], typer.Option(help="Read the first so many rows.")] = None,
    where: Annotated[Optional[str], typer.Option(help="A condition in SQL on the source's columns.")] = None,
    max_bad: Annotated[
        float, typer.Option(help="Share of pairs that may be unreadable before the exit code is 3.")
    ] = 0.01,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be imported, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Import preference pairs. Only what the store lacks is kept; the same command goes on after a kill.

    Example: prefloop store import pickapic.parquet --store prefloop-store
    """
    from .importers import ImportConfig, import_pairs, open_source, refuse_bad
    from .importers.preview import preview
    from .query import visible

    config = ImportConfig(
        source=source,
        format=form,
        map=dict(_named(column) for column in columns or ()),
        labeler=labeler,
        limit=limit,
        where=where,
        max_bad=max_bad,
    )
    opened = open_source(config)  # before a store is made, so that a mistyped source leaves nothing behind
    if dry_run:
        summary = preview(opened)
        line = "{format}: {rows} rows, labels of {labeler}; of the first {read} pairs {usable} can be used; nothing was kept"
        line = line.format_map(summary)
    else:
        summary = import_pairs(config, opened, PairStore.create(store))
        left_out = "".join(f"; left out: {n} {reason}" for reason, n in sorted(summary["left_out"].items()))
        line = (
            f"{summary['pairs']} pairs of {summary['format']}, {summary['new_pairs']} of them new, "
            f"{summary['new_labels']} new labels of {summary['labeler']}{left_out}; store: {store}"
        )
        if not summary["new_pairs"] and not summary["new_labels"]:
            line = f"nothing to do: {line}"
    typer.echo(json.dumps(summary) if as_json else line)
    for example in summary["examples"]:
        typer.echo(visible(example), err=True)
    refuse_bad(summary, max_bad)


def _named(column: str) -> tuple[str, str]:
    ours, equals, theirs = column.partition("=")
    if not equals or not ours or not theirs:
        raise UsageError(f"--map takes OURS=THEIRS, such as prompt=caption, got {column!r}")
    return ours, theirs


@app.command(rich_help_panel=_IN_OUT)
def export(
    out: Annotated[Path, typer.Argument(help="Folder to be made.")],
    store: StoreOption = DEFAULT,
    form: Annotated[
        str, typer.Option("--format", help="pickapic, datasets, webdataset, folders, csv or jsonl.")
    ] = "datasets",
    labels: Annotated[Optional[list[str]], typer.Option(help="Labeler; may be given again. All if not given.")] = None,
    where: Annotated[Optional[str], typer.Option(help="A condition in SQL over the view preferences.")] = None,
    push_to_hub: Annotated[Optional[str], typer.Option(help="Send the folder to this data set of the hub.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Write labelled pairs as a data set, with a card that says where they came from.

    Example: prefloop store export pairs --format datasets --where "margin > 1"
    """
    from .exporters import ExportConfig, export_pairs
    from .exporters.push import push, refuse_without_hub

    config = ExportConfig(out=out, format=form, labels=tuple(labels or ()), where=where)
    opened = PairStore.open(store)
    if push_to_hub:
        refuse_without_hub(out, push_to_hub)
    summary = export_pairs(config, opened)
    if push_to_hub:
        summary["address"] = push(out, push_to_hub)
    line = f"{summary['labels']} labels of {summary['pairs']} pairs in {out}"
    typer.echo(json.dumps(summary) if as_json else line)


@app.command(rich_help_panel=_UPKEEP)
def merge(
    other: Annotated[Path, typer.Argument(help="Folder of the other store; nothing in it is changed.")],
    store: StoreOption = DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Take everything that another store holds into this one.

    Example: prefloop store merge colleagues-store --store prefloop-store
    """
    from .upkeep.merge import merge as merge_stores

    summary = merge_stores(PairStore.open(store), PairStore.open(other))
    new = ", ".join(f"{n} {table}" for table, n in summary.items() if n and table != "conflicts")
    line = f"new from {other}: {new or 'nothing'}"
    if summary["conflicts"]:
        line += f"; {summary['conflicts']} labels and scores are otherwise there, those of {store} stay"
    typer.echo(json.dumps(summary) if as_json else line)


@app.command(rich_help_panel=_UPKEEP)
def backup(
    out: Annotated[Path, typer.Argument(help="Folder to be made.")],
    store: StoreOption = DEFAULT,
) -> None:
    """Copy a store while others use it. The copy is a store.

    Example: prefloop store backup /backups/prefloop-store --store prefloop-store
    """
    from .upkeep.backup import backup as copy_store

    summary = copy_store(PairStore.open(store), out)
    typer.echo(f"{summary['parts']} journal parts and {summary['pictures']} pictures in {out}")
    if lost := summary["lost"]:
        raise IntegrityError(f"{len(lost)} pictures are gone or have changed, and not in {out}: {', '.join(lost[:3])}")


@app.command(rich_help_panel=_UPKEEP)
def gc(
    store: StoreOption = DEFAULT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and end.")] = False,
) -> None:
    """Remove pictures that no row mentions and that are older than an hour.

    Example: prefloop store gc --dry-run --store prefloop-store
    """
    from .upkeep.unmentioned import remove, unmentioned

    files = unmentioned(PairStore.open(store))
    if not dry_run:
        remove(files)
    size = sum(n for _, n in files) / 1e6
    typer.echo(
        f"{len(files)} pictures that no row mentions, {size:.1f} MB, {'were found' if dry_run else 'are removed'}"
    )


@app.command(rich_help_panel=_UPKEEP)
def compact(store: StoreOption = DEFAULT) -> None:
    """Make one journal part of each table's many.

    Example: prefloop store compact --store prefloop-store
    """
    from .upkeep.compact import compact as compact_journal

    before, after = compact_journal(PairStore.open(store))
    typer.echo(f"{before} journal parts are {after} now")


@app.command(rich_help_panel=_UPKEEP)
def migrate(store: StoreOption = DEFAULT) -> None:
    """Bring a store that an older prefloop made to the schema of this one.

    Example: prefloop store migrate --store prefloop-store
    """
    from .upkeep.migrate import migrate as migrate_store

    before, after = migrate_store(PairStore(store))
    PairStore.open(store)
    typer.echo(f"{store} is of schema {after}" + (f", was {before}" if before != after else "; nothing to do"))
