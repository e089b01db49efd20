"""Merge another store into this one. Ids are derived from content, so what both have is stored once."""

from ...core.errors import IntegrityError, UsageError
from ...core.ids import content_id
from .. import journal
from ..dedupe import in_schema, new_rows
from ..ingest import has_table
from ..pairstore import PairStore

_KEYS = {"runs": ["run_id", "status"]}  # another row of a run says how it ended
_NAMED = {"labelers": "labeler", "scorers": "scorer"}
_CONFLICTS = {
    "labels": "f.choice <> t.choice or f.p_a is distinct from t.p_a",
    "scores": "f.score is distinct from t.score",
}


def merge(store: PairStore, other: PairStore) -> dict[str, int]:
    """Append the rows that the store lacks; the same call again, also after a kill, appends what is left.

    Returns:
        New rows by table, and "conflicts": labels and scores that differ between the stores; ours stay.

    Raises:
        UsageError: if a labeler or a scorer is another one in the other store.
        IntegrityError: if an image of the other store is missing or has changed.
    """
    if store.path.resolve() == other.path.resolve():
        raise UsageError(f"{other.path} is the same store; name another one to merge into it")
    _refuse_other_meanings(store, other)
    _copy_images(store, other)
    n_new: dict[str, int] = {}
    conflicts = 0
    for table in journal.TABLES:
        with other.session() as connection:
            if not has_table(connection, table):
                continue
            rows = in_schema(connection, table, f"select * from {table}")
        with store.session() as connection:
            new = rows
            if has_table(connection, table):
                new = new_rows(connection, table, rows, _KEYS.get(table, journal.key(table)))
            if table in _CONFLICTS:
                connection.register("fresh", rows)
                key = ", ".join(journal.key(table))
                query = f"select count(*) from fresh f join {table} t using ({key}) where {_CONFLICTS[table]}"
                ((n,),) = connection.execute(query).fetchall()
                conflicts += n
        store.append(table, new)
        n_new[table] = new.num_rows
    store.ingest()
    return n_new | {"conflicts": conflicts}


def _refuse_other_meanings(store: PairStore, other: PairStore) -> None:
    for table, column in _NAMED.items():
        query = f"select {column}, config from {table} order by all"
        ours = dict(store.rows(query))
        for name, config in other.rows(query):
            if ours.get(name, config) != config:
                raise UsageError(
                    f"the {column} {name!r} is {config} in {other.path} and {ours[name]} in {store.path}; "
                    "a name must mean one thing: label again under another name before merging"
                )


def _copy_images(store: PairStore, other: PairStore) -> None:
    known = {image for (image,) in store.rows("select image_id from images")}
    query = "select image_id, path, format from image_files join images using (image_id)"
    for image, path, extension in other.rows(query):
        if image in known:
            continue
        try:
            data = (other.path / path).read_bytes()
        except OSError as error:
            raise IntegrityError(f"{other.path / path} cannot be read: {error.strerror}; {_hint(other)}") from error
        if content_id(data) != image:
            raise IntegrityError(f"{other.path / path} has changed since it was stored; {_hint(other)}")
        store.write_image(data, 0, 0, extension)


def _hint(store: PairStore) -> str:
    return f"`prefloop store check --store {store.path}` names every such image"
