"""images.py: every kind of image arrives upright, in the right colours, or is refused in words.

The images are made here: left half one colour, right half another, taller than wide where
orientation is the point.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autoformer_zoo.classify.images import MAX_ASPECT, iter_images, iter_inputs, read_image, trim

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
GREYS = ((200,) * 3, (10,) * 3)


def two_halves(left: Any, right: Any, mode: str = "RGB", size: tuple[int, int] = (16, 8)) -> Any:
    image = Image.new(mode, size, right)
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    return image


def assert_sides(image: Image.Image, expected: Any, tolerance: int = 0) -> None:
    """Compare the colours in the middle of the left and of the right half."""
    assert image.mode == "RGB"
    row = np.asarray(image)[image.height // 2].astype(int)
    found = row[[image.width // 4, 3 * image.width // 4]]
    assert np.abs(found - np.asarray(expected)).max() <= tolerance


def test_rgb_file_is_what_pillow_reads(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    path = tmp_path / "noise.jpg"
    Image.fromarray(noise).save(path)
    expected = np.asarray(Image.open(path).convert("RGB"))
    for source in (path, str(path), io.BytesIO(path.read_bytes())):
        assert np.array_equal(np.asarray(read_image(source)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = two_halves(RED, BLUE, size=(32, 16))
    upright.paste((0, 255, 0), (0, 8, 16, 16))  # the lower left quarter tells all eight apart
    undo = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE")
    undo = (*undo, "ROTATE_90", "TRANSVERSE", "ROTATE_270")
    stored = upright
    if orientation > 1:
        stored = upright.transpose(Image.Transpose[undo[orientation - 2]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{suffix}"
    stored.save(path, exif=exif, quality=95)
    pixels = np.asarray(read_image(path)).astype(int)
    assert pixels.shape == (16, 32, 3)
    for (y, x), colour in {(4, 8): RED, (12, 8): (0, 255, 0), (4, 24): BLUE}.items():
        assert np.abs(pixels[y, x] - colour).max() <= 40


def test_damaged_exif_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    image = two_halves(RED, BLUE)
    image.info["exif"] = b"Exif\0\0MM\0*\0\0\0"
    assert_sides(read_image(image), (RED, BLUE))
    assert "EXIF ignored" in caplog.text


def with_info(image: Image.Image, **info: Any) -> Image.Image:
    image.info |= info
    return image


def palette_image(**info: Any) -> Image.Image:
    image = two_halves(1, 2, mode="P")
    image.putpalette([*BLACK, *RED, *BLUE])
    return with_info(image, **info)


def sixteen_bits(dtype: Any = np.uint16) -> Any:
    values = np.full((8, 16), 10 * 257, dtype)
    values[:, :8] = 200 * 257
    return values


MODES = {
    "1": (lambda: two_halves(1, 0, mode="1"), (WHITE, BLACK)),
    "L": (lambda: two_halves(200, 10, mode="L"), GREYS),
    "LA": (lambda: two_halves((10, 255), (10, 0), mode="LA"), ((10,) * 3, WHITE)),
    "La": (lambda: two_halves((10, 255), (0, 0), mode="La"), ((10,) * 3, WHITE)),
    "P": (palette_image, (RED, BLUE)),
    "P-transparent": (lambda: palette_image(transparency=2), (RED, WHITE)),
    "PA": (lambda: palette_image().convert("PA"), (RED, BLUE)),
    "RGB": (lambda: two_halves(RED, BLUE), (RED, BLUE)),
    "RGBA": (lambda: two_halves((*RED, 255), (*BLUE, 0), mode="RGBA"), (RED, WHITE)),
    "RGBA-half": (lambda: two_halves((*RED, 51), (*BLUE, 255), "RGBA"), ((255, 204, 204), BLUE)),
    "RGBa": (lambda: two_halves((*RED, 255), (0, 0, 0, 0), mode="RGBa"), (RED, WHITE)),
    "RGB-transparent": (lambda: with_info(two_halves(RED, BLUE), transparency=BLUE), (RED, WHITE)),
    "CMYK": (lambda: two_halves((0, 255, 255, 0), (255, 255, 0, 0), "CMYK"), (RED, BLUE)),
    "YCbCr": (lambda: two_halves(RED, BLUE).convert("YCbCr"), (RED, BLUE)),
    "HSV": (lambda: two_halves(RED, BLUE).convert("HSV"), (RED, BLUE)),
    "I;16": (lambda: Image.fromarray(sixteen_bits()), GREYS),
    "I": (lambda: Image.fromarray(sixteen_bits(np.int32)), GREYS),
    "F": (lambda: Image.fromarray(np.float32(sixteen_bits() / 65535)), GREYS),
}
STORED = {
    "png": ("1", "L", "LA", "P", "P-transparent", "RGBA", "RGB-transparent", "I;16"),
    "gif": ("P", "P-transparent"),
    "tiff": ("I;16", "F", "CMYK"),
    "jpg": ("CMYK",),
    "webp": ("RGBA",),
    "bmp": ("1",),
    "ppm": ("RGB",),
    "tga": ("RGBA",),
}


@pytest.mark.parametrize("name", MODES)
def test_mode_keeps_its_colours(name: str) -> None:
    make, expected = MODES[name]
    assert_sides(read_image(make()), expected, tolerance=2)


@pytest.mark.parametrize(
    ("suffix", "mode"), [(suffix, mode) for suffix, modes in STORED.items() for mode in modes]
)
def test_file_of_a_mode_keeps_its_colours(tmp_path: Path, suffix: str, mode: str) -> None:
    make, expected = MODES[mode]
    make().save(tmp_path / f"a.{suffix}")
    assert_sides(read_image(tmp_path / f"a.{suffix}"), expected, tolerance=4)


def test_16_bit_colour_png_is_reduced(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:  # by hand: Pillow writes none
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    row = b"\0" + struct.pack(">12H", *[65535, 0, 0] * 2, *[0, 0, 65535] * 2)
    header = struct.pack(">IIBBBBB", 4, 1, 16, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(row)), (b"IEND", b""))
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
    )
    assert_sides(read_image(tmp_path / "a.png"), (RED, BLUE))


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_first_frame_of_an_animation_is_taken(tmp_path: Path, suffix: str) -> None:
    path, later = tmp_path / f"a.{suffix}", two_halves(BLACK, WHITE)
    two_halves(RED, BLUE).save(path, save_all=True, append_images=[later, later], quality=100)
    assert_sides(read_image(path), (RED, BLUE), tolerance=12)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.asarray(two_halves(200, 10, mode="L")), GREYS),
        (np.asarray(two_halves(RED, BLUE)), (RED, BLUE)),
        (np.asarray(two_halves((*RED, 255), (*BLUE, 0), mode="RGBA")), (RED, WHITE)),
        (np.asarray(two_halves(RED, BLUE)) / 255.0, (RED, BLUE)),
        (np.float16(np.asarray(two_halves(RED, BLUE)) / 255.0), (RED, BLUE)),
        (np.asarray(two_halves(RED, BLUE))[::-1, ::-1], (BLUE, RED)),
        (sixteen_bits(), GREYS),
        (sixteen_bits(">u2"), GREYS),
        (sixteen_bits("<u2"), GREYS),
    ],
    ids=["grey", "rgb", "rgba", "float64", "float16", "negative-strides", "uint16", ">u2", "<u2"],
)
def test_array_keeps_its_colours(array: Any, expected: Any) -> None:
    assert_sides(read_image(array), expected)


def test_given_image_is_left_as_it_was() -> None:
    image = two_halves((*RED, 255), (*BLUE, 0), mode="RGBA")
    before = image.tobytes()
    read_image(image).paste(BLACK, (0, 0, 16, 8))
    assert (image.mode, image.tobytes()) == ("RGBA", before)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((3, 32, 32), np.uint8), r"shape \(3, 32, 32\); expected \(height, width\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "give several images as a list"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
        (np.zeros((8, 8, 3), np.int64), "holds int64; expected uint8, uint16, or floats"),
        (np.full((8, 8, 3), 255.0), "floats run from 255.0 to 255.0; expected 0 to 1"),
        (np.full((8, 8), np.nan), "floats run from nan"),
        (Image.fromarray(np.full((4, 4), 70_000, np.int32)), "from 70000 to 70000; expected 16 bi"),
        (Image.fromarray(np.full((4, 4), 2.0, np.float32)), "floats run from 2.0"),
    ],
)
def test_numbers_that_are_not_an_image_are_refused(array: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        read_image(array)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tiff", "bmp"])
@pytest.mark.parametrize("part", [0.3, 0.8])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(ValueError, match=rf"cut\.{suffix} cannot be read as an image"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"plain text", b"<html></html>", b"\x89PNG\r\n\x1a\n"])
@pytest.mark.parametrize("name", ["notes.jpg", "photo.HEIC"])
def test_file_that_is_not_an_image_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} cannot be read as an image") as found:
        read_image(tmp_path / name)
    assert ("pip install pillow-heif" in str(found.value)) == (name == "photo.HEIC")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        read_image(io.BytesIO(content))


def test_opener_of_heic_is_registered_if_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "package").mkdir()
    code = """
from PIL import Image
def open_heif(file, name):
    file.close()
    return Image.new("RGB", (3, 2))
def register_heif_opener():
    Image.register_open("HEIF", open_heif, lambda start: start == b"a photo of a cat")
"""
    (tmp_path / "package" / "pillow_heif.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "package")
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    (tmp_path / "cat.heic").write_bytes(b"a photo of a cat")
    [(name, image)] = iter_images(tmp_path)
    assert (Path(name).name, image.size) == ("cat.heic", (3, 2))


@pytest.mark.parametrize("path", ["no/such.jpg", "", "a\0b", "https://example.org/cat.jpg"])
def test_missing_path_is_named(path: str) -> None:
    for read in (read_image, lambda path: list(iter_inputs([path]))):
        with pytest.raises(FileNotFoundError, match="does not exist; expected an image") as found:
            read(path)
        assert path in str(found.value)
        assert ("a URL has to be downloaded first" in str(found.value)) == ("://" in path)


def test_folder_device_and_program_are_not_an_image(tmp_path: Path) -> None:
    two_halves(RED, BLUE).save(tmp_path / "a.png", format="EPS")
    for path, text in {
        tmp_path: "is a folder or a device; expected an image",
        Path(os.devnull): "is a folder or a device; expected an image",
        tmp_path / "a.png": r"a\.png is a PostScript program, which is not run",
    }.items():
        with pytest.raises(ValueError, match=text):
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
    # Pillow itself refuses above twice its limit, we above the limit.
    for limit, text in ((1000, "is too large: 40 x 40 pixels"), (100, "cannot be read as an im")):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=rf"huge\.png {text}"):
            read_image(path)
    assert_sides(read_image(two_halves(RED, BLUE, size=(40, 40))), (RED, BLUE))  # in memory already
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert_sides(read_image(path), (RED, BLUE))
    path = path.with_suffix(".jpg")  # which is decoded smaller
    two_halves(RED, BLUE, size=(64, 32)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
    assert read_image(path).size == (32, 16)
    assert_sides(read_image(path), (RED, BLUE), tolerance=10)


@pytest.mark.parametrize(
    ("size", "trimmed"),
    [
        ((8000, 1), (64, 1)),
        ((2, 20001), (2, 129)),
        ((64, 1), (64, 1)),
        ((5000, 3000), (5000, 3000)),
    ],
)
def test_extremely_long_image_is_trimmed_to_its_middle(
    size: tuple[int, int], trimmed: tuple[int, int]
) -> None:
    found = trim(two_halves(RED, BLUE, size=size))
    assert found.size == trimmed
    assert max(found.size) <= MAX_ASPECT * min(found.size) + 1
    assert_sides(found, (RED, BLUE) if size[0] > 2 else np.asarray(found)[0])


def test_folder_is_sorted_and_searched_below(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    hidden = ("sub/.hidden.png", ".git/d.png", "notes.txt")
    for name in ("b.png", "a.JPG", "sub/c.png", *hidden, "../elsewhere/e.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "sub" / "above").symlink_to(folder)  # which would be walked forever
    names = [name for name, _ in iter_inputs(folder)]
    expected = ("a.JPG", "b.png", "linked/e.png", "sub/c.png")
    assert names == [str(folder / name) for name in expected]
    (folder / ".git" / "d.png").unlink()
    with pytest.raises(ValueError, match=rf"the folder {folder / '.git'} holds no image"):
        list(iter_inputs(folder / ".git"))


def test_list_mixes_kinds_and_names_them(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.touch()
    array, named = np.zeros((4, 4), np.uint8), io.BytesIO()
    named.name = "<stdin>"
    mixed: list[Any] = [tmp_path, array, Image.new("L", (4, 4)), str(path), io.BytesIO(), named]
    names = [name for name, _ in iter_inputs(mixed)]
    assert names == [str(path), "array 1", "image 2", str(path), "file 4", "<stdin>"]
    endless = iter_inputs(array for _ in range(10**9))  # of which nothing is read ahead
    assert next(endless)[0] == "array 0"


@pytest.mark.parametrize("thing", [None, 3, b"cat.jpg", [None], [["a.png"]]])
def test_thing_that_is_not_an_image_is_refused(thing: Any) -> None:
    with pytest.raises(ValueError, match=r"of type .*; expected a path, an open binary file, a PI"):
        list(iter_inputs(thing))
