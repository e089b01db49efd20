"""`prefloop store merge`, `backup`, `gc`, `compact` and `migrate`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ...core.cli import DEFAULT, StoreOption, say
from ...core.errors import IntegrityError
from ..pairstore import PairStore


def merge(
    other: Annotated[Path, typer.Argument(help="Folder of the other store; nothing in it is changed.")],
    store: StoreOption = DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Take everything that another store holds into this one.

    Example: prefloop store merge colleagues-store --store prefloop-store
    """
    from ..journal import parts
    from ..parts import damage
    from .merge import merge as merge_stores

    ours, theirs = PairStore.open(store), PairStore.open(other)
    summary = merge_stores(ours, theirs)
    new = ", ".join(f"{n} {table}" for table, n in summary.items() if n and table != "conflicts")
    line = f"new from {other}: {new or 'nothing'}"
    if summary["conflicts"]:
        line += f"; {summary['conflicts']} labels and scores are otherwise there, those of {store} stay"
    say(json.dumps(summary) if as_json else line)
    if damaged := [name for name in parts(theirs.journal) if damage(theirs.journal / name)]:
        raise IntegrityError(
            f"{len(damaged)} journal parts of {other} have changed since they were written: {', '.join(damaged[:3])}; "
            "its tables, from which all was taken, do not depend on them, but a rebuild of it would"
        )


def backup(
    out: Annotated[Path, typer.Argument(help="Folder to be made.")],
    store: StoreOption = DEFAULT,
) -> None:
    """Copy a store while others use it. The copy is a store.

    Example: prefloop store backup /backups/prefloop-store --store prefloop-store
    """
    from .backup import backup as copy_store

    summary = copy_store(PairStore.open(store), out)
    say(f"{summary['parts']} journal parts and {summary['pictures']} pictures in {out}")
    if lost := summary["lost"]:
        raise IntegrityError(f"{len(lost)} pictures are gone or have changed, and not in {out}: {', '.join(lost[:3])}")


def gc(
    store: StoreOption = DEFAULT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and end.")] = False,
) -> None:
    """Remove pictures that no row mentions and that are older than an hour.

    Example: prefloop store gc --dry-run --store prefloop-store
    """
    from .gc import remove, unmentioned

    files = unmentioned(PairStore.open(store))
    if not dry_run:
        remove(files)
    size = sum(n for _, n in files) / 1e6
    say(f"{len(files)} pictures that no row mentions, {size:.1f} MB, {'were found' if dry_run else 'are removed'}")


def compact(store: StoreOption = DEFAULT) -> None:
    """Make one journal part of each table's many.

    Example: prefloop store compact --store prefloop-store
    """
    from .compact import compact as compact_journal

    before, after = compact_journal(PairStore.open(store))
    say(f"{before} journal parts are {after} now")


def migrate(store: StoreOption = DEFAULT) -> None:
    """Bring a store that an older prefloop made to the schema of this one.

    Example: prefloop store migrate --store prefloop-store
    """
    from .migrate import migrate as migrate_store

    before, after = migrate_store(PairStore(store))
    PairStore.open(store)
    say(f"{store} is of schema {after}" + (f", was {before}" if before != after else "; nothing to do"))
