"""Everything another store holds into this one. Ids follow from content, so what both have is there once."""

from ...core.errors import IntegrityError, UsageError
from ...core.ids import content_id
from .. import journal
from ..dedupe import in_schema, lacking
from ..pairstore import PairStore

_KEYS = {"runs": ["run_id", "status"]}  # another row of a run tells how it ended
_NAMED = {"labelers": "labeler", "scorers": "scorer"}
_CONFLICTS = {
    "labels": "f.choice <> t.choice or f.p_a is distinct from t.p_a",
    "scores": "f.score is distinct from t.score",
}


def merge(store: PairStore, other: PairStore) -> dict[str, int]:
    """Append what the store lacks; the same call again, after a kill too, appends the rest.

    Returns:
        New rows by table, and "conflicts": labels and scores that both stores have with other values; ours stay.

    Raises:
        UsageError: where a labeler or a scorer means another thing in the other store.
        IntegrityError: where a picture of the other store is gone or has changed.
    """
    if store.path.resolve() == other.path.resolve():
        raise UsageError(f"{other.path} is the same store; name another one to merge into it")
    _refuse_other_meanings(store, other)
    _copy_pictures(store, other)
    new: dict[str, int] = {}
    conflicts = 0
    for table in journal.TABLES:
        with other.session() as connection:
            rows = in_schema(connection, table, f"select * from {table}")
        with store.session() as connection:
            found = lacking(connection, table, rows, _KEYS.get(table, journal.key(table)))
            if table in _CONFLICTS:
                connection.register("fresh", rows)
                key = ", ".join(journal.key(table))
                query = f"select count(*) from fresh f join {table} t using ({key}) where {_CONFLICTS[table]}"
                ((n,),) = connection.execute(query).fetchall()
                conflicts += n
        store.append(table, found)
        new[table] = found.num_rows
    store.ingest()
    return new | {"conflicts": conflicts}


def _refuse_other_meanings(store: PairStore, other: PairStore) -> None:
    for table, name in _NAMED.items():
        query = f"select {name}, config from {table} order by all"
        ours = dict(store.rows(query))
        for which, config in other.rows(query):
            if ours.get(which, config) != config:
                raise UsageError(
                    f"{name} {which!r} is {config} in {other.path} and {ours[which]} in {store.path}; "
                    "a name must mean one thing: label again under another name before merging"
                )


def _copy_pictures(store: PairStore, other: PairStore) -> None:
    known = {image for (image,) in store.rows("select image_id from images")}
    for image, path, extension in other.rows(
        "select image_id, path, format from image_files join images using (image_id)"
    ):
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
    return f"`prefloop store check --store {store.path}` names every such picture"
