"""Any image to 8-bit RGB: files, folders, PIL images and arrays.

What stands before `predict.py`'s transform. Resizes, crops and normalises nothing, fetches nothing
from the network. Colour profiles are ignored, as timm and torchvision ignore them, so that an
ordinary RGB image arrives exactly as `Image.open(path).convert("RGB")` gives it.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

_logger = logging.getLogger(__name__)

# Any of numpy's element types: what is refused is said by value, not by type.
ImageLike: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any]
"""One image, or a folder of them where the text says so."""

# What a folder is searched for; a path given by itself may end as it likes.
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp"})
SUFFIXES |= {".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga"}
BACKGROUND = (255, 255, 255)  # what transparent pixels are laid on
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://|data:")
_KINDS = "a path, a PIL image or a numpy array"


def iter_inputs(images: ImageLike | Iterable[ImageLike]) -> Iterator[tuple[str, ImageLike]]:
    """Name images one by one, folders opened; nothing is read yet.

    Args:
        images: a image, a folder, or any iterable of these. Of a folder, all files below it
            whose suffix is a image's, sorted by path; hidden ones are left out.

    Yields:
        The image's path, or its kind and place ("array 2"), and the image.

    Raises:
        ValueError: a URL, a folder without images, or something that is no image.
        FileNotFoundError: a path does not exist.
    """
    items: Iterable[Any]
    if isinstance(images, (str, bytes, os.PathLike, Image.Image, np.ndarray)):
        items = [images]
    elif isinstance(images, Iterable) and not _is_tensor_or_file(images):
        items = images
    else:
        raise ValueError(f"a image is {_kind(images)}; expected {_KINDS}, or a list of those")
    place = 0
    for item in items:
        for name, entry in _expand(item, place):
            yield name, entry
            place += 1


def iter_images(
    images: ImageLike | Iterable[ImageLike], skip_unreadable: bool = False
) -> Iterator[tuple[str, Image.Image]]:
    """Name and read images one by one: `iter_inputs`, then `read_image`.

    Args:
        images: as in `iter_inputs`.
        skip_unreadable: log a warning for a image that cannot be read, and go on.

    Raises:
        ValueError: a image is refused.
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
    """Return a image as an upright RGB image of 8 bits.

    EXIF orientation is applied; transparency is laid on white; of an animation the first frame is
    taken; 16 bits become 8. A JPEG of more pixels than `PIL.Image.MAX_IMAGE_PIXELS` is decoded at
    half its sides; other images of that size are refused.

    Args:
        source: a path; a PIL image of any mode; or an array (height, width), or (height, width, 3
            or 4) as RGB or RGBA, of uint8, uint16 (65535 is white) or floats from 0 to 1.

    Returns:
        A new image of mode RGB.

    Raises:
        ValueError: not a image, damaged, too large, or of a kind that has no plain RGB.
        FileNotFoundError: the path does not exist.
    """
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source))
    if isinstance(source, Image.Image):
        return _decode(source, getattr(source, "filename", "") or "the given image")
    path = _checked_path(source)
    if not path.is_file():
        raise ValueError(f"{path} is a folder or a device; expected a image")
    try:
        with warnings.catch_warnings():
            # Pillow warns above its limit and refuses above twice that; `_limit_size` decides here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not a image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large: {error}; reduce it first") from None
    except PermissionError:
        raise
    except Exception as error:  # plugins raise what they like on damaged headers
        raise ValueError(f"{path} cannot be read as a image: {error}") from None
    with image:
        if image.format == "EPS":
            raise ValueError(f"{path} is a PostScript program, which is not run; convert it first")
        return _decode(image, str(path))


def _expand(item: object, place: int) -> Iterator[tuple[str, Any]]:
    if isinstance(item, np.ndarray):
        yield f"array {place}", item
    elif isinstance(item, Image.Image):
        yield getattr(item, "filename", "") or f"image {place}", item
    elif isinstance(item, (str, os.PathLike)):
        path = _checked_path(item)
        if path.is_dir():
            yield from _walk(path)
        else:
            yield str(path), path
    else:
        raise ValueError(f"image {place} is {_kind(item)}; expected {_KINDS}")


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Give the images below a folder, one directory's names in memory at a time."""
    found = False
    for root, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                found = True
                path = Path(root, name)
                yield str(path), path
    if not found:
        raise ValueError(f"the folder {folder} holds no image (.jpg, .png, .webp, ...)")


def _raise(error: OSError) -> None:
    raise error


def _checked_path(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if isinstance(text, str) and _URL.match(text):
        shown = text if len(text) <= 100 else f"{text[:97]}..."
        raise ValueError(f"{shown} is a URL; images are not fetched: download it, give its path")
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"{text!r} is no path; expected {_KINDS}")
    path = Path(text)
    if not path.exists():
        raise FileNotFoundError(f"{text} does not exist; expected a image or a folder")
    return path


def _decode(image: Image.Image, name: str) -> Image.Image:
    _limit_size(image, name)
    try:
        image.load()
        return _to_rgb(_upright(image))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise what they like on damaged data
        raise ValueError(f"{name} cannot be read as a image: {error}") from None


def _limit_size(image: Image.Image, name: str) -> None:
    """Refuse more pixels than Pillow's limit; a JPEG is decoded at half its sides instead."""
    pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
    on_disk = getattr(image, "fp", None) is not None  # else decoded before: the memory is spent
    if limit is None or pixels <= limit or not on_disk:
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
    has_alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if not has_alpha:
        return image.convert("RGB")
    if image.mode in ("La", "RGBa"):  # premultiplied: Pillow converts to the plain mode only
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    image = image.convert("RGBA")
    below = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    return Image.alpha_composite(below, image).convert("RGB")


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    grey = array.ndim == 2
    if not (grey or (array.ndim == 3 and array.shape[2] in (3, 4))) or array.size == 0:
        raise ValueError(
            f"the array has the shape {array.shape}; expected (height, width) or (height, width, 3 "
            "or 4); give several images as a list"
        )
    if array.dtype.kind != "f" and array.dtype not in (np.uint8, np.uint16):
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


def _is_tensor_or_file(value: object) -> bool:
    """Tell what could be iterated, but not image by image."""
    return hasattr(value, "shape") or hasattr(value, "read")


def _kind(value: object) -> str:
    return f"of type {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")
