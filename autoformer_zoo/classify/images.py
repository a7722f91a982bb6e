"""Any image to 8-bit RGB: files, folders, PIL images and arrays.

The one reader of images: prediction, training, calibration and benchmarks use it, so that they see
the same pixels. Resizes, crops and normalises nothing, and fetches nothing from the network. Colour
profiles are ignored, as timm and torchvision ignore them, so that an ordinary RGB image is exactly
what `Image.open(path).convert("RGB")` returns.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps

_logger = logging.getLogger(__name__)

# Any element type of numpy: which ones are accepted is checked by `_from_array`.
ImageLike: TypeAlias = str | os.PathLike[str] | IO[bytes] | Image.Image | np.ndarray[Any, Any]
"""One image, or a folder of them where documented."""

# What a folder is searched for; a path given by itself may end as it likes.
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp"})
SUFFIXES |= {".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga", ".heic", ".heif"}
BACKGROUND = (255, 255, 255)  # shown through transparent pixels
MAX_ASPECT = 64  # longer images are cropped to their middle, see `trim`


def iter_inputs(images: ImageLike | Iterable[ImageLike]) -> Iterator[tuple[str, ImageLike]]:
    """Yield names and images; folders are expanded, nothing is decoded.

    Args:
        images: an image, a folder, or any iterable of these. Of a folder, all files below it,
            links included, whose suffix is an image's, without hidden ones: its own files by name,
            then those of its folders by name.

    Yields:
        The image's path, or its kind and place ("array 2"), and the image.

    Raises:
        ValueError: a folder without images, or something that is not an image.
        FileNotFoundError: a path does not exist.
    """
    is_one = isinstance(images, (str, os.PathLike, Image.Image, np.ndarray)) or hasattr(
        images, "read"
    )
    items: Any = [images] if is_one else images
    if not isinstance(items, Iterable) or isinstance(items, bytes):
        raise _not_an_image(images)
    place = 0
    for item in items:
        for name, entry in _expand(item, place):
            yield name, entry
            place += 1


def iter_images(
    images: ImageLike | Iterable[ImageLike], skip_unreadable: bool = False
) -> Iterator[tuple[str, Image.Image]]:
    """Yield names and decoded images: `iter_inputs`, then `read_image`.

    Args:
        images: as in `iter_inputs`.
        skip_unreadable: log a warning for an image that cannot be read, and go on.

    Raises:
        ValueError: an image is refused.
        FileNotFoundError: a path does not exist.
    """
    for name, entry in iter_inputs(images):
        try:
            image = read_image(entry)
        except (ValueError, OSError) as error:
            if not skip_unreadable:
                raise
            _logger.warning("skipped: %s", error)
            continue
        yield name, image


def read_image(source: ImageLike) -> Image.Image:
    """Return an image as an upright RGB image of 8 bits.

    EXIF orientation is applied; transparency is composited on white; the first frame of an
    animation is used; 16 bits are reduced to 8. A JPEG of more pixels than
    `PIL.Image.MAX_IMAGE_PIXELS` is decoded at half its sides; other images of that size are
    refused.

    Args:
        source: a path; an open binary file; a PIL image of any mode; or an array (height, width),
            or (height, width, 3 or 4) as RGB or RGBA, of uint8, uint16 (65535 is white) or floats
            from 0 to 1.

    Returns:
        A new image of mode RGB.

    Raises:
        ValueError: not an image, damaged, too large, or of a kind that has no plain RGB.
        FileNotFoundError: the path does not exist.
    """
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source))
    if isinstance(source, Image.Image):
        return _decode(source, getattr(source, "filename", "") or "the given image")
    if isinstance(source, (str, os.PathLike)):
        source = _existing_path(source)
        if not source.is_file():
            raise ValueError(f"{source} is a folder or a device; expected an image")
    name = str(getattr(source, "name", "the given file")) if hasattr(source, "read") else source
    is_heif = Path(name).suffix.lower() in (".heic", ".heif")
    if is_heif and find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()
    try:
        with warnings.catch_warnings():
            # Pillow warns above its limit and refuses above twice that; `_limit_size` decides here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(source)
    except PermissionError:
        raise
    except Exception as error:  # plugins raise what they like on damaged headers
        hint = "; HEIC needs `pip install pillow-heif`" if is_heif else ""
        raise ValueError(f"{name} cannot be read as an image: {error}{hint}") from None
    with image:
        if image.format == "EPS":  # Pillow would run the program with Ghostscript
            raise ValueError(f"{name} is a PostScript program, which is not run; convert it first")
        return _decode(image, str(name))


def image_files(folder: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """List the images below a folder, and what was left out: hidden entries and other files.

    Links are followed, but not to a folder that is searched already or that contains this one.
    """
    found: list[str] = []
    left_out: list[str] = []
    searched = {os.path.realpath(folder)}
    for root, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        kept = []
        for name in sorted(folders):
            path = os.path.join(root, name)
            target = os.path.realpath(path)
            if name.startswith(".") or target in searched or contains(target, root):
                left_out.append(path)
            else:
                searched.add(target)
                kept.append(name)
        folders[:] = kept  # os.walk goes on with these
        for name in sorted(files):
            is_image = os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
            (found if is_image else left_out).append(os.path.join(root, name))
    return found, left_out


def contains(folder: str, other: str | os.PathLike[str]) -> bool:
    """Return True if a folder, without links in its path, is another one or is above it."""
    return Path(os.path.realpath(other)).is_relative_to(folder)


def trim(image: Image.Image) -> Image.Image:
    """Return the middle of an extremely long image, `MAX_ASPECT` times as long as it is wide.

    The centre crop of every model lies within it. Resizing the whole of an image of 8000 x 1
    pixels, so that its shorter side is 256, would take 2 GiB.
    """
    longest = MAX_ASPECT * min(image.size)
    left, top = (max(0, side - longest) // 2 for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top)) if left or top else image


def _not_an_image(thing: object, name: str = "an image") -> ValueError:
    return ValueError(
        f"{name} is of type {type(thing).__name__}; expected a path, an open binary file, a PIL "
        "image or a numpy array, or a list of those"
    )


def _expand(item: object, place: int) -> Iterator[tuple[str, Any]]:
    if isinstance(item, np.ndarray):
        yield f"array {place}", item
    elif isinstance(item, Image.Image):
        yield getattr(item, "filename", "") or f"image {place}", item
    elif isinstance(item, (str, os.PathLike)):
        path = _existing_path(item)
        if not path.is_dir():
            yield str(path), path
        elif files := image_files(path)[0]:
            yield from ((file, Path(file)) for file in files)
        else:
            raise ValueError(f"the folder {path} holds no image (.jpg, .png, .webp, ...)")
    elif hasattr(item, "read"):
        yield str(getattr(item, "name", f"file {place}")), item
    else:
        raise _not_an_image(item, f"image {place}")


def _existing_path(path: str | os.PathLike[str]) -> Path:
    if not os.path.exists(path):
        hint = "; a URL has to be downloaded first" if "://" in str(path) else ""
        raise FileNotFoundError(f"{path} does not exist; expected an image or a folder{hint}")
    return Path(path)


def _raise(error: OSError) -> None:
    raise error


def _decode(image: Image.Image, name: str) -> Image.Image:
    _limit_size(image, name)
    try:
        image.load()
        return _to_rgb(_upright(image))
    except Exception as error:  # decoders raise what they like on damaged data
        raise ValueError(f"{name} cannot be read as an image: {error}") from None


def _limit_size(image: Image.Image, name: str) -> None:
    """Refuse more pixels than Pillow's limit; a JPEG is decoded at half its sides instead."""
    pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
    is_on_disk = getattr(image, "fp", None) is not None  # else the memory is already spent
    if limit is None or pixels <= limit or not is_on_disk:
        return
    width, height = image.size
    if image.draft("RGB", (width // 2, height // 2)) is None:
        raise ValueError(
            f"{name} is too large: {width} x {height} pixels, the limit is {limit} in all; reduce "
            "it first, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        )
    _logger.warning("%s: %d x %d pixels, decoded at half its sides", name, width, height)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # damaged EXIF raises many types, and the pixels are still good
        _logger.warning("EXIF ignored, the orientation may be wrong: %s", error)
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in image.info:
        return image.convert("RGB")
    if image.mode in ("La", "RGBa"):  # premultiplied: Pillow converts to the plain mode only
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    image = image.convert("RGBA")
    below = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    return Image.alpha_composite(below, image).convert("RGB")


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    is_colour = array.ndim == 3 and array.shape[2] in (3, 4)
    if not (is_colour or array.ndim == 2) or array.size == 0:
        raise ValueError(
            f"the array has the shape {array.shape}; expected (height, width) or (height, width, 3 "
            "or 4); give several images as a list"
        )
    # Readers of TIFF return the byte order of the file.
    if array.dtype.kind != "f" and array.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise ValueError(
            f"the array holds {array.dtype}; expected uint8, uint16, or floats from 0 to 1"
        )
    return Image.fromarray(np.ascontiguousarray(_eight_bits(array)))


def _eight_bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Turn numbers into bytes: floats from 0..1, whole numbers wider than a byte from 0..65535."""
    if values.dtype == np.uint8:
        return values
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # NaN fails both
            raise ValueError(f"floats run from {low} to {high}; expected 0 to 1, or uint8")
        return np.asarray(np.rint(values.astype(np.float64) * 255), dtype=np.uint8)
    if low < 0 or high > 65535:
        raise ValueError(f"numbers run from {low} to {high}; expected 16 bits, 0 to 65535")
    return np.asarray(values >> 8, dtype=np.uint8)  # as Pillow reduces 16-bit colour
