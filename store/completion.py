"""Names in a store that a shell completes: quick, and without writing, waiting or failing."""

from pathlib import Path


def labelers(store: Path) -> list[str]:
    """The store's labelers without those of evaluations, which nobody names."""
    return _names(store, "select labeler from labelers where not starts_with(labeler, 'eval:') order by labeler")


def scorers(store: Path) -> list[str]:
    """Scorers with scores."""
    return _names(store, "select distinct name from scorers order by name")


def evaluations(store: Path) -> list[str]:
    """Evaluations that were finished, by name."""
    query = "select distinct summary ->> '$.name' from runs where kind = 'eval' and status = 'done' order by all"
    return _names(store, query)


def models(store: Path) -> list[str]:
    """Models that images were generated with, and the folders of finished training runs that still exist."""
    trained = _names(store, "select config ->> '$.output_dir' from runs where kind = 'train' and status = 'done'")
    folders = [name for name in trained if Path(name).is_dir()]
    return sorted({*_names(store, "select name from models"), *folders})


def tables(store: Path) -> list[str]:
    """Tables and views."""
    query = "select table_name from information_schema.tables where table_schema = 'main' order by table_name"
    return _names(store, query)


def _names(store: Path, query: str) -> list[str]:
    from .pairstore import PairStore

    database = PairStore(store).database
    try:
        if not database.is_file():
            return []
        import duckdb

        with duckdb.connect(str(database), read_only=True) as connection:
            return [str(name) for (name,) in connection.execute(query).fetchall() if name is not None]
    except Exception:  # a shell that completes must not print an error, whatever is in the folder
        return []
