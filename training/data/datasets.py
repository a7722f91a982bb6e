"""TODO docstring."""

from __future__ import annotations

import logging
import signal
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageDataset, create_dataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.config import TrainConfig, space_of
from training.data.batch import (
    Batch,
    require_classes,
)
from training.data.splits import require_split
from training.run.distributed import Ranks

PACKAGES = {  # that timm does not bring along
    "hfds": "datasets",
    "hfids": "datasets",
    "tfds": "tensorflow tensorflow-datasets",
}


# What decoders raise on damaged files; anything else is an error of ours.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError)


class DamagedDataError(ValueError):
    """Too many images could not be read."""


class _Once(logging.Filter):
    """Lets timm tell once, not at each opening, that shards have no info file."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        is_new = text not in self._told
        if text.startswith("Dataset info file not found"):
            self._told.add(text)
        return is_new


def open_split(
    config: TrainConfig,
    data_dir: Path,
    split: str,
    batch_size: int = 1,
    is_training: bool = True,
) -> Dataset[Any]:
    """Open a split of the config's data set, without transforms.

    Args:
        config: names the data set.
        data_dir: its root.
        split: as the data set calls it.
        batch_size: of a stream.
        is_training: whether a stream is shuffled.

    Raises:
        FileNotFoundError: it is not there, or timm does not know it.
        ValueError: a package is missing.
    """
    source = config.data.source
    require_split(config.data, data_dir, split)
    try:
        return create_dataset(
            "" if source == "folder" else source,
            str(data_dir),
            split,
            is_training=is_training,
            download=config.data.download,
            batch_size=batch_size,
            seed=config.seed,
        )
    except ImportError as error:
        packages = PACKAGES.get(source.partition("/")[0].lower(), error.name)
        raise ValueError(
            f"data.source {source!r} needs a package that is not here ({error}): "
            f"pip install {packages}"
        ) from None
    except (RuntimeError, AssertionError) as error:  # as timm and torchvision refuse
        raise FileNotFoundError(f"{source} under {data_dir}, split {split}: {error}") from None


def labels_of(dataset: Dataset[Any]) -> Tensor | None:
    """Return all labels of a data set with positions; None where that needs decoding."""
    reader: Any = getattr(dataset, "reader", None)
    found: Sequence[Any] | None = None
    if hasattr(reader, "samples"):
        found = [label for _, label in reader.samples]
    elif hasattr(reader, "label_key"):  # a Hugging Face data set
        found = reader.dataset[reader.label_key]
    else:
        found = next(
            (getattr(dataset, name) for name in ("targets", "_labels") if hasattr(dataset, name)),
            None,
        )
    return None if found is None else torch.as_tensor(list(found))


def read_image(dataset: Dataset[Any], index: int) -> tuple[Image.Image, int]:
    """Decode a image of a data set, in RGB, and return it with its label.

    timm's own reading would step to the next position where a file is broken, which may be a
    held-out one.
    """
    if isinstance(dataset, ImageDataset):
        file, label, *_ = dataset.reader[index]
        with closing(file):
            return Image.open(file).convert("RGB"), int(label)
    image, label = dataset[index]
    return image.convert("RGB"), int(label)


Sample = tuple[Tensor, int, int, str]
"""A image (3, height, width), its label, how many broken ones were met, why to give up or ""."""


def load(
    images: Dataset[Sample], config: TrainConfig, ranks: Ranks, workers: int, **batching: Any
) -> Iterator[Batch]:
    """Yield batches that workers make.

    Args:
        images: what they make.
        config: says how many classes there may be.
        ranks: where batches are put.
        workers: how many; 0: this process.
        batching: what PyTorch's loader takes to form batches.

    Raises:
        DamagedDataError: too many images could not be read.
        ValueError: a label is beyond the network's classes.
    """
    device, num_classes = ranks.device, space_of(config).num_classes
    loader: DataLoader[Any] = DataLoader(
        images,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_signals,
        **batching,
    )
    for x, labels, broken, damage in loader:
        if found := next(filter(None, damage), None):
            raise DamagedDataError(found)
        require_classes(labels, num_classes, config.data.source)
        yield Batch(
            x.to(device, non_blocking=True),
            labels.to(device, non_blocking=True),
            int(broken.sum()),
        )


def damaged(text: str, img_size: int) -> Sample:
    """Return what a worker gives where it gives up, for `load` to raise.

    As an exception it would come as its whole traceback, and PyTorch could not stop the worker.
    """
    return torch.zeros(3, img_size, img_size), -1, 0, " ".join(text.split())


def ignore_signals(_: int) -> None:
    """Leave Ctrl-C and termination to the training process, which stops its workers itself."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
