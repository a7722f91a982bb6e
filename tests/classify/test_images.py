"""images.py: every kind of image arrives upright, in the right colours, or is refused in words.

The images are made here: left half one colour, right half another, taller than wide where
orientation is the point.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autoformer_zoo.classify.images import iter_inputs, read_image

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def two_halves(left: Any, right: Any, mode: str = "RGB", size: tuple[int, int] = (16, 8)) -> Any:
    image = Image.new(mode, size, right)
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    return image


def sides(image: Image.Image) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The colours in the middle of the left and of the right half."""
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    row, width = pixels[image.height // 2], image.width
    return tuple(map(int, row[width // 4])), tuple(map(int, row[3 * width // 4]))


def near(colour: tuple[int, ...], expected: tuple[int, ...], tolerance: int = 0) -> bool:
    return max(abs(a - b) for a, b in zip(colour, expected, strict=True)) <= tolerance


def test_rgb_file_is_what_pillow_reads(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    path = tmp_path / "noise.jpg"
    Image.fromarray(noise).save(path)
    expected = np.asarray(Image.open(path).convert("RGB"))
    assert np.array_equal(np.asarray(read_image(path)), expected)
    assert np.array_equal(np.asarray(read_image(str(path))), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = two_halves(RED, BLUE, size=(32, 16))
    upright.paste((0, 255, 0), (0, 8, 16, 16))  # the lower left quarter tells all eight apart
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{suffix}"
    stored.save(path, exif=exif, quality=95)
    image = read_image(path)
    assert image.size == (32, 16)
    pixels = np.asarray(image)
    for (y, x), colour in {(4, 8): RED, (12, 8): (0, 255, 0), (4, 24): BLUE}.items():
        assert near(tuple(map(int, pixels[y, x])), colour, tolerance=40)


def test_damaged_exif_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = two_halves(RED, BLUE)
    image.info["exif"] = b"Exif\0\0MM\0*\0\0\0"
    assert sides(read_image(image)) == (RED, BLUE)
    assert "EXIF ignored" in caplog.text


def palette_image() -> Image.Image:
    image = two_halves(1, 2, mode="P")
    image.putpalette([*BLACK, *RED, *BLUE])
    return image


def palette_with_alpha() -> Image.Image:
    image = palette_image()
    image.info["transparency"] = 2
    return image


MODES = {
    "1": (lambda: two_halves(1, 0, mode="1"), (WHITE, BLACK)),
    "L": (lambda: two_halves(200, 10, mode="L"), ((200,) * 3, (10,) * 3)),
    "LA": (lambda: two_halves((10, 255), (10, 0), mode="LA"), ((10,) * 3, WHITE)),
    "La": (lambda: two_halves((10, 255), (0, 0), mode="La"), ((10,) * 3, WHITE)),
    "P": (palette_image, (RED, BLUE)),
    "P-transparent": (palette_with_alpha, (RED, WHITE)),
    "PA": (lambda: palette_image().convert("PA"), (RED, BLUE)),
    "RGB": (lambda: two_halves(RED, BLUE), (RED, BLUE)),
    "RGBA": (lambda: two_halves((*RED, 255), (*BLUE, 0), mode="RGBA"), (RED, WHITE)),
    "RGBA-half": (lambda: two_halves((*RED, 51), (*BLUE, 255), "RGBA"), ((255, 204, 204), BLUE)),
    "RGBa": (lambda: two_halves((*RED, 255), (0, 0, 0, 0), mode="RGBa"), (RED, WHITE)),
    "CMYK": (lambda: two_halves((0, 255, 255, 0), (255, 255, 0, 0), "CMYK"), (RED, BLUE)),
    "YCbCr": (lambda: two_halves(RED, BLUE).convert("YCbCr"), (RED, BLUE)),
    "HSV": (lambda: two_halves(RED, BLUE).convert("HSV"), (RED, BLUE)),
    "I;16": (lambda: Image.fromarray(sixteen_bits()), ((200,) * 3, (10,) * 3)),
    "I": (lambda: Image.fromarray(sixteen_bits().astype(np.int32)), ((200,) * 3, (10,) * 3)),
    "F": (lambda: Image.fromarray(np.float32(sixteen_bits() / 65535)), ((200,) * 3, (10,) * 3)),
}


def sixteen_bits() -> Any:
    values = np.full((8, 16), 10 * 257, np.uint16)
    values[:, :8] = 200 * 257
    return values


@pytest.mark.parametrize("name", MODES)
def test_mode_keeps_its_colours(name: str) -> None:
    make, expected = MODES[name]
    left, right = sides(read_image(make()))
    assert near(left, expected[0], tolerance=2)
    assert near(right, expected[1], tolerance=2)


@pytest.mark.parametrize(
    ("file", "mode"),
    [
        ("a.png", "1"),
        ("a.png", "L"),
        ("a.png", "LA"),
        ("a.png", "P"),
        ("a.png", "P-transparent"),
        ("a.png", "RGBA"),
        ("a.png", "I;16"),
        ("a.gif", "P"),
        ("a.gif", "P-transparent"),
        ("a.tiff", "I;16"),
        ("a.tiff", "F"),
        ("a.tiff", "CMYK"),
        ("a.jpg", "CMYK"),
        ("a.webp", "RGBA"),
        ("a.bmp", "1"),
        ("a.ppm", "RGB"),
        ("a.tga", "RGBA"),
    ],
)
def test_file_of_a_mode_keeps_its_colours(tmp_path: Path, file: str, mode: str) -> None:
    make, expected = MODES[mode]
    make().save(tmp_path / file)
    left, right = sides(read_image(tmp_path / file))
    assert near(left, expected[0], tolerance=4)
    assert near(right, expected[1], tolerance=4)


def test_transparent_colour_of_a_png_becomes_white(tmp_path: Path) -> None:
    two_halves(RED, BLUE).save(tmp_path / "a.png", transparency=BLUE)
    assert sides(read_image(tmp_path / "a.png")) == (RED, WHITE)


def test_16_bit_colour_png_is_reduced(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(_png_16_bit_rgb())
    assert sides(read_image(path)) == (RED, BLUE)


def _png_16_bit_rgb() -> bytes:
    """A 4 x 1 PNG of 16 bits a channel; Pillow writes none."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    row = b"\0" + struct.pack(">12H", *[65535, 0, 0] * 2, *[0, 0, 65535] * 2)
    header = struct.pack(">IIBBBBB", 4, 1, 16, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(row)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_first_frame_of_an_animation_is_taken(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    later = two_halves(BLACK, WHITE)
    two_halves(RED, BLUE).save(path, save_all=True, append_images=[later, later], quality=100)
    left, right = sides(read_image(path))
    assert near(left, RED, tolerance=12)
    assert near(right, BLUE, tolerance=12)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.asarray(two_halves(200, 10, mode="L")), ((200,) * 3, (10,) * 3)),
        (np.asarray(two_halves(RED, BLUE)), (RED, BLUE)),
        (np.asarray(two_halves((*RED, 255), (*BLUE, 0), mode="RGBA")), (RED, WHITE)),
        (np.asarray(two_halves(RED, BLUE)) / 255.0, (RED, BLUE)),
        (np.float16(np.asarray(two_halves(RED, BLUE)) / 255.0), (RED, BLUE)),
        (np.asarray(two_halves(RED, BLUE))[::-1, ::-1], (BLUE, RED)),
        (sixteen_bits(), ((200,) * 3, (10,) * 3)),
    ],
    ids=["grey", "rgb", "rgba", "float64", "float16", "negative-strides", "uint16"],
)
def test_array_keeps_its_colours(array: Any, expected: Any) -> None:
    assert sides(read_image(array)) == expected


def test_given_image_is_left_as_it_was() -> None:
    image = two_halves((*RED, 255), (*BLUE, 0), mode="RGBA")
    before = image.tobytes()
    result = read_image(image)
    result.paste(BLACK, (0, 0, 16, 8))
    assert (image.mode, image.tobytes()) == ("RGBA", before)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((3, 32, 32), np.uint8), r"shape \(3, 32, 32\); expected \(height, width\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "give several images as a list"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
        (np.zeros((8, 8, 3), np.int64), "holds int64; expected uint8, uint16, or floats"),
        (np.zeros((8, 8, 3), bool), "holds bool"),
        (np.zeros((8, 8), object), "holds object"),
        (np.full((8, 8, 3), 255.0), "floats run from 255.0 to 255.0; expected 0 to 1"),
        (np.full((8, 8, 3), -0.5), "floats run from -0.5"),
        (np.full((8, 8), np.nan), "floats run from nan"),
    ],
)
def test_array_of_another_kind_is_refused(array: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        read_image(array)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (np.full((4, 4), 70_000, np.int32), "numbers run from 70000 to 70000; expected 16 bits"),
        (np.full((4, 4), -1, np.int32), "numbers run from -1"),
        (np.full((4, 4), 2.0, np.float32), "floats run from 2.0"),
    ],
)
def test_wide_numbers_without_a_known_white_are_refused(
    tmp_path: Path, values: Any, text: str
) -> None:
    Image.fromarray(values).save(tmp_path / "wide.tiff")
    with pytest.raises(ValueError, match=rf"wide\.tiff cannot be read as a image: .*{text}"):
        read_image(tmp_path / "wide.tiff")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tiff", "bmp"])
@pytest.mark.parametrize("part", [0.3, 0.8])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(ValueError, match=rf"cut\.{suffix} (cannot be read as|is not) a image"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"plain text", b"<html></html>", b"\x89PNG\r\n\x1a\n"])
def test_file_that_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.jpg (is not a|cannot be read as a) image"):
        read_image(path)


def test_postscript_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    two_halves(RED, BLUE).save(path, format="EPS")
    with pytest.raises(ValueError, match=r"a\.png is a PostScript program, which is not run"):
        read_image(path)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/cat.jpg",
        "HTTP://x/y",
        "s3://bucket/cat.png",
        "file:///cat.jpg",
        "data:,x",
    ],
)
def test_url_is_refused_with_the_reason(url: str) -> None:
    with pytest.raises(ValueError, match="is a URL; images are not fetched: download it"):
        read_image(url)
    with pytest.raises(ValueError, match="is a URL"):
        list(iter_inputs([url]))


def test_missing_path_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no/such\.jpg does not exist"):
        read_image("no/such.jpg")


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_path_that_cannot_be_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="is no path; expected a path, a PIL image or a numpy"):
        read_image(path)


def test_folder_and_device_are_no_image(tmp_path: Path) -> None:
    for path in (tmp_path, Path(os.devnull)):
        with pytest.raises(ValueError, match="is a folder or a device; expected a image"):
            read_image(path)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "locked.png"
    two_halves(RED, BLUE).save(path)
    path.chmod(0)
    with pytest.raises(PermissionError, match=r"locked\.png"):
        read_image(path)


def test_too_many_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.png"
    two_halves(RED, BLUE, size=(40, 40)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 40 x 40 lies between once and twice
    with pytest.raises(
        ValueError, match=r"huge\.png is too large: 40 x 40 pixels, the limit is 1000"
    ):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"huge\.png is too large: .*reduce it first"):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert sides(read_image(path)) == (RED, BLUE)


def test_large_jpeg_is_decoded_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.jpg"
    two_halves(RED, BLUE, size=(64, 32)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
    image = read_image(path)
    assert image.size == (32, 16)
    assert near(sides(image)[0], RED, tolerance=10)


def test_image_in_memory_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert sides(read_image(two_halves(RED, BLUE))) == (RED, BLUE)


def test_image_opened_from_bytes_is_read() -> None:
    buffer = io.BytesIO()
    two_halves(RED, BLUE).save(buffer, format="PNG")
    assert sides(read_image(Image.open(buffer))) == (RED, BLUE)


def test_folder_is_sorted_and_searched_below(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "sub/c.png", "sub/.hidden.png", ".git/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [name for name, _ in iter_inputs(tmp_path)]
    assert names == [str(tmp_path / name) for name in ("a.JPG", "b.png", "sub/c.png")]


def test_list_mixes_kinds_and_names_them(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    array = np.zeros((4, 4), np.uint8)
    mixed: list[Any] = [tmp_path, array, Image.new("L", (4, 4)), str(tmp_path / "a.png")]
    names = [name for name, _ in iter_inputs(mixed)]
    path = str(tmp_path / "a.png")
    assert names == [path, "array 1", "image 2", path]


def test_iterating_reads_nothing_ahead(tmp_path: Path) -> None:
    items = iter_inputs(np.zeros((4, 4), np.uint8) for _ in range(10**9))
    assert next(items)[0] == "array 0"


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=rf"the folder {tmp_path} holds no image"):
        list(iter_inputs(tmp_path))


@pytest.mark.parametrize("thing", [None, 3, b"cat.jpg", io.BytesIO(), [None], [["a.png"]]])
def test_thing_that_is_no_image_is_refused(thing: Any) -> None:
    with pytest.raises(ValueError, match=r"of type .*; expected a path, a PIL image or a numpy"):
        list(iter_inputs(thing))
