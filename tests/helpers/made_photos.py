"""A folder of made-up photos: noisy squares of four classes, in the formats that cameras write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 40, 40)}
GREY = "grey"  # as PNG of 16 bits
SIDE = 48


def write_photos(root: Path, **splits: int) -> Path:
    """Write ROOT/SPLIT/CLASS/.../IMAGE, with that many images of each class; returns the root."""
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        for number in range(count):
            for name in (*COLORS, GREY):
                folder = root / split / name / f"session{number % 2}"
                folder.mkdir(parents=True, exist_ok=True)
                _write(folder, name, number, rng)
        (root / split / ".ipynb_checkpoints").mkdir()
        (root / split / "notes.txt").write_text("not an image")
    return root


def _write(folder: Path, name: str, number: int, rng: np.random.Generator) -> None:
    noise = rng.normal(0, 25, (SIDE, SIDE + 8, 3))
    if name == GREY:
        grey = np.clip((noise[..., 0] + 128) * 257, 0, 65535).astype(np.uint16)
        Image.fromarray(grey).save(folder / f"{number}.png")
        return
    image = Image.fromarray(np.clip(noise + COLORS[name], 0, 255).astype(np.uint8))
    if name == "red":
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was held on its side
        image.save(folder / f"{number}.jpg", quality=95, exif=exif)
    elif name == "blue":
        image.putalpha(Image.new("L", image.size, 255))
        image.save(folder / f"{number}.png")
    else:
        image.save(folder / f"{number}.webp", quality=95)
