"""Which crop of an image is trained on."""

import pytest
import torch
from PIL import Image
from prefloop.train.crops import Crop, bucket, resize_and_crop


def bar(width: int = 128, height: int = 64) -> Image.Image:
    """Black, with a white bar that starts at an eighth of the width and is a quarter of it wide."""
    image = Image.new("RGB", (width, height), (0, 0, 0))
    image.paste((255, 255, 255), (width // 8, 0, width * 3 // 8, height))
    return image


def test_an_image_is_resized_until_it_covers_its_crop_and_cropped_in_the_middle():
    pixels, coordinates = resize_and_crop(bar(), Crop(32, 32))
    assert pixels.shape == (3, 32, 32)
    # resized to 64 x 32, the bar at columns 8 to 24; cropped to 16 to 48: the bar is columns 0 to 8
    assert pixels[0, 16, 1:7].min() > 0.95
    assert pixels[0, 16, 10:].max() < -0.95
    assert coordinates == [64, 128, 0, 16]  # original height and width, top and left of the crop


def test_a_small_image_is_enlarged():
    pixels, coordinates = resize_and_crop(bar(16, 16), Crop(32, 32))
    assert pixels.shape == (3, 32, 32)
    assert coordinates == [16, 16, 0, 0]


def test_a_crop_at_another_position_has_its_own_coordinates():
    left, left_coordinates = resize_and_crop(bar(), Crop(32, 32, position=0.0))
    right, right_coordinates = resize_and_crop(bar(), Crop(32, 32, position=1.0))
    assert left_coordinates[2:] == [0, 0]
    assert right_coordinates[2:] == [0, 32]
    assert left[0, 16, 10:22].min() > 0.95  # the whole bar, columns 8 to 24
    assert right.max() < -0.95


@pytest.mark.parametrize("position", [0.0, 0.25, 0.5, 1.0])
def test_the_mirrored_crop_is_the_mirror_image_of_the_crop(position: float):
    plain, _ = resize_and_crop(bar(), Crop(32, 32, position))
    mirrored, coordinates = resize_and_crop(bar(), Crop(32, 32, position, mirrored=True))
    assert torch.equal(mirrored, plain.flip(-1))
    # the crop of the mirrored image starts as far from its left as the plain one ends from its right
    assert coordinates[3] == 32 - round(32 * position)


def test_buckets_keep_the_ratio_within_the_area_and_the_step():
    assert bucket(512, 512, 512, 64) == (512, 512)
    assert bucket(1024, 1024, 512, 64) == (512, 512)
    # 3 : 2 is a logarithm of 0.41; crops of that area are 576 x 448 (0.25), 640 x 384 (0.51), 704 x 320 (0.79)
    assert bucket(300, 200, 512, 64) == (640, 384)
    assert bucket(200, 300, 512, 64) == (384, 640)
    for height, width in ((1, 9), (9, 1), (4, 5), (1080, 1920)):
        rows, columns = bucket(height, width, 512, 64)
        assert rows % 64 == columns % 64 == 0
        assert rows * columns <= 512 * 512
        assert max(rows, columns) <= 2 * min(rows, columns)


def test_crops_of_one_image_have_different_keys():
    from uuid import UUID

    crops = [Crop(32, 32), Crop(32, 64), Crop(32, 32, 0.25), Crop(32, 32, mirrored=True)]
    assert len({crop.key(UUID(int=1)) for crop in crops}) == 4
    assert Crop(32, 32).key(UUID(int=1)) != Crop(32, 32).key(UUID(int=2))
