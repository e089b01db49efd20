"""WebDataset shards: tar files with KEY.chosen.EXT, KEY.rejected.EXT and KEY.json of a pair next to each other."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa

from ..images import format_of
from ..pairstore import PairStore
from .hf_datasets import label_columns
from .select import chosen_and_rejected, with_images
from .shards import by_split, slices

_PAIRS = 1000  # per shard


def write_webdataset(folder: Path, rows: pa.Table, store: PairStore) -> None:
    for split, of_split in by_split(rows):
        for number, part in enumerate(slices(of_split, _PAIRS)):
            with tarfile.open(folder / f"{split}-{number:06d}.tar", "w") as shard:
                for place, (row, a, b) in enumerate(with_images(store, part)):
                    key = f"{number * _PAIRS + place:09d}"
                    for side, data in zip(("chosen", "rejected"), chosen_and_rejected(row, a, b), strict=True):
                        _add(shard, f"{key}.{side}.{format_of(data)}", data)
                    _add(shard, f"{key}.json", json.dumps(label_columns(row), ensure_ascii=False).encode())


def _add(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # its time stays 0, so that equal exports have equal bytes
    member.size = len(data)
    shard.addfile(member, io.BytesIO(data))
