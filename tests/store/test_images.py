"""`load_image` decodes to 8-bit RGB, upright, on white, and refuses everything else with a reason."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prefloop.store import ImageError, image_id, load_image
from prefloop.store.images import image_path, png_bytes, write_image


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def refusal(source: bytes | Path, **options: object) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source, **options)  # type: ignore[arg-type]  # each test gives what load_image takes
    return caught.value.reason


def noise(width: int = 8, height: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_images_are_decoded_exactly(form: str, options: dict):
    loaded = load_image(encoded(noise(), form, **options))
    assert loaded.mode == "RGB"
    assert np.array_equal(np.asarray(loaded), np.asarray(noise()))


def test_a_file_is_decoded_like_its_bytes(tmp_path: Path):
    (tmp_path / "x.png").write_bytes(encoded(noise()))
    assert load_image(tmp_path / "x.png").tobytes() == noise().tobytes()


def test_a_jpeg_with_exif_rotation_is_turned_upright():
    # left half red, right half blue, stored with orientation 6: turned by 90° clockwise to be shown, so red is on top
    wide = Image.new("RGB", (16, 8), (255, 0, 0))
    wide.paste((0, 0, 255), (8, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    loaded = load_image(encoded(wide, "JPEG", exif=exif, quality=95, subsampling=0))
    assert loaded.size == (8, 16)
    pixels = np.asarray(loaded).astype(int)
    assert np.abs(pixels[2, 4] - (255, 0, 0)).max() < 6
    assert np.abs(pixels[13, 4] - (0, 0, 255)).max() < 6


def test_transparency_is_composited_on_white():
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 255, 51)):
        image.putpixel((x, 0), (200, 0, 0, alpha))
    # 51 / 255 = 0.2: red 0.2 * 200 + 0.8 * 255 = 244, others 0.8 * 255 = 204
    assert np.asarray(load_image(encoded(image)))[0].tolist() == [[255, 255, 255], [200, 0, 0], [244, 204, 204]]


def test_a_transparent_palette_entry_is_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 0, 255, 0])
    image.putpixel((1, 0), 1)
    assert np.asarray(load_image(encoded(image, transparency=1)))[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_gray_with_alpha_is_composited_on_white():
    image = Image.new("LA", (2, 1), (0, 0))
    image.putpixel((1, 0), (100, 255))
    assert np.asarray(load_image(encoded(image)))[0].tolist() == [[255] * 3, [100] * 3]


def test_sixteen_bits_are_scaled_not_clipped():
    # the high byte: 0x0000 → 0, 0x00ff → 0, 40000 = 0x9c40 → 156, 0xffff → 255
    image = Image.fromarray(np.array([[0, 255, 40000, 65535]], np.uint16))
    assert np.asarray(load_image(encoded(image)))[0].tolist() == [[0] * 3, [0] * 3, [156] * 3, [255] * 3]


def test_a_cmyk_jpeg_becomes_rgb():
    # cyan ink takes away red: no cyan, full magenta, full yellow is red
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(np.asarray(load_image(encoded(image, "JPEG", quality=95))).astype(int) - (255, 0, 0)).max() < 6


@pytest.mark.parametrize("form", ["WEBP", "PNG"])
def test_an_animation_is_refused(form: str):
    frames = [noise(), Image.new("RGB", (8, 8), (0, 255, 0))]
    assert refusal(encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=100)) == "animated"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_image_is_refused(form: str):
    data = encoded(noise(64, 64), form)
    assert refusal(data[: len(data) // 2]) == "unreadable"


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF"])
def test_another_format_is_refused(form: str):
    assert refusal(encoded(noise(), form)) == "format"


@pytest.mark.parametrize("data", [b"", b"no image", b"<svg/>"])
def test_data_that_is_not_an_image_is_refused(data: bytes):
    assert refusal(data) == "format"


def header_alone(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixel, so that decoding it would be another refusal."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"IDAT"
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 0)
        + end
        + struct.pack(">I", zlib.crc32(end))
    )


# Pillow has limits of its own, at 89 and 179 million pixels
@pytest.mark.parametrize("side", [8001, 10_000, 13_000, 30_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_before_they_are_decoded(side: int):
    assert refusal(header_alone(side, side)) == "too large"


def test_the_limit_counts_width_times_height_and_is_itself_allowed():
    data = encoded(noise(10, 6))
    assert load_image(data, max_pixels=60).size == (10, 6)
    assert refusal(data, max_pixels=59) == "too large"


def test_a_changed_image_is_refused_although_it_decodes():
    stored, other = encoded(noise()), encoded(Image.new("RGB", (8, 8)))
    assert load_image(stored, image_id(stored)).size == (8, 8)
    assert refusal(other, expected=image_id(stored)) == "hash"


def test_a_missing_image_and_a_folder_are_refused(tmp_path: Path):
    assert refusal(tmp_path / "gone.png") == "missing"
    assert refusal(tmp_path) == "missing"


def test_a_refusal_names_the_file(tmp_path: Path):
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.raises(ImageError, match=r"bad\.png is not a PNG, JPEG or WebP image"):
        load_image(tmp_path / "bad.png")


def test_an_image_is_written_under_its_id_and_a_damaged_one_is_written_again(tmp_path: Path):
    data = png_bytes(noise())
    identity = write_image(tmp_path, data)
    path = image_path(tmp_path, identity)
    assert path == tmp_path / identity.hex[:2] / f"{identity.hex}.png"
    path.write_bytes(data[:10])  # as a copy that ran out of space leaves it
    assert write_image(tmp_path, data) == identity
    assert load_image(path, identity).tobytes() == noise().tobytes()
    assert [found.name for found in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("side", [16, 256])
def test_encoding_loses_nothing_and_searches_a_large_photograph_for_runs_only(side: int):
    generator = np.random.default_rng(0)
    smooth = generator.normal(0, 8, (side, side, 3)).cumsum(axis=0).cumsum(axis=1) / 8
    photograph = Image.fromarray(np.clip(128 + smooth + generator.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8))
    data = png_bytes(photograph)
    assert load_image(data).tobytes() == photograph.tobytes()
    photograph.save(plain := io.BytesIO(), "PNG", compress_level=1)
    assert (len(data) < 0.98 * len(plain.getvalue())) == (side == 256)
