"""The rows of each image, in order."""

from uuid import UUID

import pyarrow as pa
from prefloop.core.id_columns import IdColumn
from prefloop.relabel.image_rows import ImageRows

A, B, C = UUID(int=3 << 64), UUID(int=1 << 64), UUID(int=2 << 64)


def rows_of(*images: UUID) -> ImageRows:
    return ImageRows(pa.chunked_array([pa.array([image.bytes for image in images], pa.binary(16))]))


def test_images_come_in_the_order_of_their_first_row():
    rows = rows_of(A, B, A, C, B, A)
    assert (rows.first.tolist(), list(IdColumn(rows.images))) == ([0, 1, 3], [A, B, C])


def test_an_image_has_all_its_rows_in_their_order():
    rows = rows_of(A, B, A, C, B, A)
    assert rows.of([B, A]).tolist() == [1, 4, 0, 2, 5]
    assert rows.of([]).tolist() == []
