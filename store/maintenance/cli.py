"""`prefloop store merge`, `backup`, `gc`, `compact` and `migrate`."""

from pathlib import Path
from typing import Annotated

import typer

from ...core.cli import DEFAULT, JsonOption, OutputDirArgument, OutputDirOption, StoreOption, folder_to_write, say
from ...core.document import answer
from ...core.errors import IntegrityError


def merge(
    other: Annotated[Path, typer.Argument(help="Folder of the other store, which is not changed.")],
    store: StoreOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Merge another store into this one.

    Example: prefloop store merge colleagues-store --store prefloop-store
    """
    from ..journal import parts
    from ..pairstore import PairStore
    from ..parts import damage
    from .merge import merge as merge_stores

    ours, theirs = PairStore.open(store), PairStore.open(other)
    summary = merge_stores(ours, theirs)
    new = ", ".join(f"{n} {table}" for table, n in summary.items() if n and table != "conflicts")
    line = f"new from {other}: {new or 'nothing'}"
    if summary["conflicts"]:
        line += f"; {summary['conflicts']} labels and scores differ, those of {store} stay"
    if as_json:
        answer(summary)
    else:
        say(line)
    if damaged := [name for name in parts(theirs.journal) if damage(theirs.journal / name)]:
        raise IntegrityError(
            f"{len(damaged)} journal parts of {other} have changed since they were written: {', '.join(damaged[:3])}; "
            "the merge read its tables, which are intact, but a rebuild of it would lose rows"
        )


def backup(
    out: OutputDirArgument = None,
    output_dir: OutputDirOption = None,
    store: StoreOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Copy a store, also while it is in use. The copy is a store.

    Example: prefloop store backup --output-dir /backups/prefloop-store --store prefloop-store
    """
    from ..pairstore import PairStore
    from .backup import backup as copy_store

    folder = folder_to_write(output_dir, out)
    summary = copy_store(PairStore.open(store), folder)
    if as_json:
        answer(summary)
    else:
        say(f"copied {summary['parts']} journal parts and {summary['images']} images to {folder}")
    if lost := summary["lost"]:
        raise IntegrityError(
            f"{len(lost)} images are missing or have changed, and are not in {folder}: {', '.join(lost[:3])}"
        )


def gc(
    store: StoreOption = DEFAULT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed, and exit.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove images that no row refers to and that are older than an hour.

    Example: prefloop store gc --dry-run --store prefloop-store
    """
    from ..pairstore import PairStore
    from .gc import remove, unreferenced_images

    files = unreferenced_images(PairStore.open(store))
    if not dry_run:
        remove(files)
    n_bytes = sum(n for _, n in files)
    if as_json:
        answer({"images": len(files), "bytes": n_bytes, "removed": not dry_run})
        return
    say(f"{'would remove' if dry_run else 'removed'} {len(files)} unreferenced images, {n_bytes / 1e6:.1f} MB")


def compact(store: StoreOption = DEFAULT, as_json: JsonOption = False) -> None:
    """Merge each table's journal parts into one.

    Example: prefloop store compact --store prefloop-store
    """
    from ..pairstore import PairStore
    from .compact import compact as compact_journal

    before, after = compact_journal(PairStore.open(store))
    if as_json:
        answer({"parts_before": before, "parts_after": after})
        return
    say(f"compacted {before} journal parts to {after}")


def migrate(store: StoreOption = DEFAULT, as_json: JsonOption = False) -> None:
    """Rebuild the database of a store that an older prefloop made, in the schema of this one; the old one is kept.

    Example: prefloop store migrate --store prefloop-store
    """
    from ..pairstore import PairStore
    from .migrate import migrate as migrate_store

    before, after = migrate_store(PairStore(store))
    PairStore.open(store)
    if as_json:
        answer({"version_before": before, "version_after": after})
        return
    was = f"; it had {before}, and the old database is pairs.duckdb.old" if before != after else "; nothing to do"
    say(f"{store} has schema version {after}{was}")
