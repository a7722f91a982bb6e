"""Inputs for readers: valid files, damaged at random, and JSON with odd values in odd places."""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Iterator
from typing import Any

from PIL import Image

from autoformer_zoo.published import SPACES, SUBNETS
from autoformer_zoo.weights.checkpoint import save_subnet, save_supernet
from tests.helpers.hostile import LEGACY, saved
from tests.helpers.made_weights import cut, make_supernet, supernet_file

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400),
    *(0.5, -0.0, 1e308, float("inf"), float("nan"), "", "0", "a" * 5000, "\0", "\ud800"),
    *([], {}, [[]], [None], {"": None}, [0] * 300, [[[[[[]]]]]]),
)
ODD_BYTES = (b"\0", b"\xff" * 8, b"\xff" * 4, b"\x80", b"{", b"}", b"[" * 50, b'"', b"PK\x03\x04")


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Change some bytes, cut, repeat or insert; one to eight times."""
    data = bytearray(content)
    # Half of the changes are where most of a file's structure is.
    reach = len(data) if rng.random() < 0.5 else min(len(data), 600)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        where = rng.randrange(max(1, min(reach, len(data))))
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[where % len(data)] = rng.randrange(256)
        elif kind == 1 and data:
            data[where % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[where : where + rng.choice((1, 4, 8, 100, len(data)))]
        elif kind == 3:
            length = rng.choice((1, 4, 8, 100))
            data[where:where] = data[where : where + length]
        elif kind == 4:
            data[where:where] = rng.choice(ODD_BYTES)
        else:
            odd = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**32, 2**63, 2**64 - 1)))
            data[where : where + 8] = odd[: rng.choice((1, 2, 4, 8))]
    return bytes(data)


def odd_json(value: Any, rng: random.Random) -> Any:
    """Replace one part of a JSON value by something odd, or drop it, or add something."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        changed = dict(value)
        kind = rng.randrange(8)
        if kind == 0:
            del changed[key]
        elif kind == 1:
            changed[f"{key}x"] = rng.choice(ODD_VALUES)
        else:
            changed[key] = odd_json(changed[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        changed_list = list(value)
        place = rng.randrange(len(value))
        changed_list[place] = odd_json(value[place], rng)
        return changed_list[: rng.randrange(len(value) + 1)] if rng.random() < 0.2 else changed_list
    return rng.choice(ODD_VALUES)


def checkpoints(folder: Any) -> list[bytes]:
    """Return valid files of every format, small."""
    supernet = make_supernet(bias_rule="packed_prefix")
    save_supernet(supernet, folder / "a")
    save_subnet(cut(make_supernet()), folder / "b")
    files = [(folder / name).read_bytes() for name in "ab"]
    for name in "ab":
        (folder / name).unlink()
    return [*files, supernet_file(supernet), saved(cut(supernet).tensors, **LEGACY)]


def odd_header(content: bytes, rng: random.Random) -> bytes:
    """Make the header of a safetensors file odd, and keep its length right."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(odd_json(header, rng)).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def odd_checkpoints(folder: Any, rng: random.Random) -> Iterator[bytes]:
    """Yield damaged checkpoints without end."""
    files = checkpoints(folder)
    while True:
        content = rng.choice(files)
        is_ours = content[8:9] == b"{"
        odd = odd_header(content, rng) if is_ours and rng.random() < 0.5 else None
        yield damaged(content, rng) if odd is None else odd


def odd_configs(rng: random.Random) -> Iterator[str]:
    """Yield JSON texts of subnets and spaces, odd or damaged, without end."""
    given = [subnet.to_dict() for subnet in SUBNETS.values()]
    given += [json.loads(space.to_json()) for space in SPACES.values()]
    while True:
        value = rng.choice(given)
        text = json.dumps(odd_json(value, rng))
        if rng.random() < 0.3:
            text = damaged(text.encode(), rng).decode("utf-8", "replace")
        yield text


def odd_properties(properties: dict[str, str], rng: random.Random) -> Iterator[dict[str, str]]:
    """Yield an ONNX file's metadata, odd or damaged, without end."""
    while True:
        values = {key: json.loads(text) for key, text in properties.items()}
        changed = odd_json(values, rng)
        if not isinstance(changed, dict):
            continue
        texts = {str(key): json.dumps(value) for key, value in changed.items()}
        if texts and rng.random() < 0.3:
            key = rng.choice(list(texts))
            texts[key] = damaged(texts[key].encode(), rng).decode("utf-8", "replace")
        yield texts


def odd_images(rng: random.Random) -> Iterator[bytes]:
    """Yield damaged images of several formats and modes without end."""
    picture = Image.effect_noise((23, 17), 80)
    files = []
    for name, mode in (
        *(("PNG", "RGB"), ("PNG", "P"), ("PNG", "I;16"), ("PNG", "LA"), ("JPEG", "RGB")),
        *(("JPEG", "CMYK"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "F")),
        *(("WEBP", "RGBA"), ("PPM", "RGB"), ("TGA", "RGB"), ("ICO", "RGBA")),
    ):
        buffer = io.BytesIO()
        (picture.convert("RGB") if mode == "CMYK" else picture).convert(mode).save(buffer, name)
        files.append(buffer.getvalue())
    while True:
        yield damaged(rng.choice(files), rng)
