"""What part of an image is trained on."""

import pytest
import torch
from PIL import Image
from prefloop.train.crops import Frame, bucket, cut


def bar(width: int = 128, height: int = 64) -> Image.Image:
    """Black, with a white bar an eighth of the width from the left, a quarter of the width broad."""
    image = Image.new("RGB", (width, height), (0, 0, 0))
    image.paste((255, 255, 255), (width // 8, 0, width * 3 // 8, height))
    return image


def test_an_image_is_scaled_until_it_covers_its_frame_and_cut_in_the_middle():
    pixels, told = cut(bar(), Frame(32, 32))
    assert pixels.shape == (3, 32, 32)
    # scaled to 64 x 32, the bar at columns 8 to 24; cut at 16 to 48: the bar is columns 0 to 8
    assert pixels[0, 16, 1:7].min() > 0.95
    assert pixels[0, 16, 10:].max() < -0.95
    assert told == [64, 128, 0, 16]  # original height and width, top and left of the cut


def test_a_small_image_is_enlarged():
    pixels, told = cut(bar(16, 16), Frame(32, 32))
    assert pixels.shape == (3, 32, 32)
    assert told == [16, 16, 0, 0]


def test_a_cut_at_another_place_says_so():
    left, told_left = cut(bar(), Frame(32, 32, place=0.0))
    right, told_right = cut(bar(), Frame(32, 32, place=1.0))
    assert told_left[2:] == [0, 0]
    assert told_right[2:] == [0, 32]
    assert left[0, 16, 10:22].min() > 0.95  # the whole bar, columns 8 to 24
    assert right.max() < -0.95


@pytest.mark.parametrize("place", [0.0, 0.25, 0.5, 1.0])
def test_the_mirrored_frame_is_the_mirror_image_of_the_frame(place: float):
    plain, _ = cut(bar(), Frame(32, 32, place))
    mirrored, told = cut(bar(), Frame(32, 32, place, mirrored=True))
    assert torch.equal(mirrored, plain.flip(-1))
    # the cut in the mirrored image begins as far from its left as the plain one ends from its right
    assert told[3] == 32 - round(32 * place)


def test_buckets_keep_the_ratio_within_the_area_and_the_step():
    assert bucket(512, 512, 512, 64) == (512, 512)
    assert bucket(1024, 1024, 512, 64) == (512, 512)
    # 3 : 2 is a logarithm of 0.41; frames of that area are 576 x 448 (0.25), 640 x 384 (0.51), 704 x 320 (0.79)
    assert bucket(300, 200, 512, 64) == (640, 384)
    assert bucket(200, 300, 512, 64) == (384, 640)
    for height, width in ((1, 9), (9, 1), (4, 5), (1080, 1920)):
        rows, columns = bucket(height, width, 512, 64)
        assert rows % 64 == columns % 64 == 0
        assert rows * columns <= 512 * 512
        assert max(rows, columns) <= 2 * min(rows, columns)


def test_frames_of_one_image_have_keys_of_their_own():
    from uuid import UUID

    frames = [Frame(32, 32), Frame(32, 64), Frame(32, 32, 0.25), Frame(32, 32, mirrored=True)]
    assert len({frame.key(UUID(int=1)) for frame in frames}) == 4
    assert Frame(32, 32).key(UUID(int=1)) != Frame(32, 32).key(UUID(int=2))
