"""Write Fashion-MNIST as an image folder: train, val and test with a folder of PNG files a class.

    apt-get install dataset-fashion-mnist
    python examples/fashion_mnist.py /usr/share/datasets/fashion-mnist DATA

The package is Debian's; the images are Zalando's (arXiv 1708.07747, MIT). A part of the training
images is taken, the first of each class: `train` per class to train on, the next `val` to hold out.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle-boot"),
)
HEADER = {"images": 16, "labels": 8}  # bytes of the IDX files before the values


def read(source: Path, part: str, kind: str, dims: int) -> np.ndarray:
    """Read an IDX file: images (n, 28, 28) or labels (n,), of the part train or t10k."""
    data = gzip.decompress((source / f"{part}-{kind}-idx{dims}-ubyte.gz").read_bytes())
    values = np.frombuffer(data, np.uint8, offset=HEADER[kind])
    return values.reshape(-1, 28, 28) if kind == "images" else values


def main(source: Path, out: Path, train: int = 1000, val: int = 200) -> None:
    """Write DATA/SPLIT/CLASS/NUMBER.png."""
    cuts = {"train": ("train", 0, train), "val": ("train", train, train + val)}
    for split, (part, first, end) in {**cuts, "test": ("t10k", 0, None)}.items():
        images, labels = read(source, part, "images", 3), read(source, part, "labels", 1)
        for label, name in enumerate(CLASSES):
            folder = out / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in np.flatnonzero(labels == label)[first:end]:
                Image.fromarray(images[number]).save(folder / f"{number:05d}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
