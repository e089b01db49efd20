"""A copy of a store that is itself a store: its journal and images, and a database built from them."""

import shutil
from pathlib import Path

from ...core.errors import IntegrityError
from ...core.files import atomic_folder, refuse_existing
from ...core.ids import content_id
from .. import journal
from ..ingest import ingested_parts
from ..pairstore import PairStore
from ..parts import missing, refuse_damaged


def backup(store: PairStore, out: Path) -> dict:
    """Copy what the store holds now; other processes may go on writing to it.

    Returns:
        parts and images (counts), and lost: images that are missing or have changed, which the copy lacks.
    """
    refuse_existing(out)
    store.ingest()
    images = store.rows("select image_id, path, n_bytes from image_files join images using (image_id) order by path")
    lost = []
    with atomic_folder(out, sum(n_bytes for *_, n_bytes in images)) as folder:
        copy = PairStore(folder)
        for name in ("journal", "images", "cache"):
            (folder / name).mkdir()
        with store.session() as connection:  # no compaction meanwhile
            parts = journal.parts(store.journal)
            for name in parts:
                shutil.copyfile(store.journal / name, copy.journal / name)
            refuse_damaged(store.journal, parts)
            if gone := missing(store.journal, ingested_parts(connection), parts):
                raise IntegrityError(
                    f"{len(gone)} journal parts of {store.path} are missing, and a copy would lack their rows: "
                    f"{', '.join(gone[:3])}; restore them from another backup"
                )
        for image, path, _ in images:
            try:
                data = (store.path / path).read_bytes()
            except OSError:
                data = b""
            if content_id(data) != image:
                lost.append(path)
                continue
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(data)
        copy.rebuild()
    return {"parts": len(parts), "images": len(images) - len(lost), "lost": lost}
