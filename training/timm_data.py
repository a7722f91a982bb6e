"""timm's data sets and transforms as a config names them: opening, labels, decoding.

Nothing here knows of batches; `timm_source.py` and `stream_source.py` make them.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageDataset, create_dataset, create_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import RandomCrop

from autoformer_zoo.autoformer import CIFAR10_MEAN, CIFAR10_STD
from training.config import TrainConfig
from training.posterize import allow_no_bits
from training.splits import require_split

Transform = Callable[[Image.Image], Tensor]
NORMALISATIONS = {
    "cifar10": (CIFAR10_MEAN, CIFAR10_STD),
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
}
PACKAGES = {  # that timm does not bring along
    "hfds": "datasets",
    "hfids": "datasets",
    "tfds": "tensorflow tensorflow-datasets",
}
# What decoders raise on damaged files; anything else is an error of ours.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError)


class DamagedDataError(ValueError):
    """Too many pictures could not be read."""


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


logging.getLogger("timm.data.readers.reader_wds").addFilter(_Once())


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


def train_transform(config: TrainConfig, img_size: int) -> Transform:
    """Return what happens to a training picture, by timm; float32 (3, img_size, img_size).

    Raises:
        ValueError: timm does not know the policy.
    """
    augment, data = config.augment, config.data
    if augment.crop == "none":
        return eval_transform(config, img_size)
    mean, std = NORMALISATIONS[data.normalisation]
    try:
        transform = create_transform(
            img_size,
            is_training=True,
            color_jitter=augment.color_jitter or None,
            auto_augment=augment.policy or None,
            interpolation=data.interpolation,
            mean=mean,
            std=std,
            re_prob=augment.erasing,
            re_mode="pixel",
            use_prefetcher=False,
        )
    except (AssertionError, KeyError, ValueError) as error:  # it may say nothing
        if not augment.policy:
            raise
        reason = f" ({error})" if str(error) else ""
        raise ValueError(
            f"augment.policy is {augment.policy!r}{reason}; expected one that timm knows, such as "
            "rand-m9-mstd0.5-inc1, augmix-m3 or original, or none"
        ) from None
    allow_no_bits(transform)
    if augment.crop == "shift":  # as DeiT does for small pictures: no zoom
        resize = eval_transform(config, img_size).transforms[:2]  # type: ignore[attr-defined]
        transform.transforms[:1] = [*resize, RandomCrop(img_size, padding=img_size // 8)]
    return transform


def eval_transform(config: TrainConfig, img_size: int) -> Transform:
    """Return what happens to a picture for evaluation: resize, centre crop, normalise."""
    mean, std = NORMALISATIONS[config.data.normalisation]
    return create_transform(
        img_size,
        interpolation=config.data.interpolation,
        mean=mean,
        std=std,
        crop_pct=config.data.crop_pct,
        use_prefetcher=False,
    )


def read_picture(dataset: Dataset[Any], index: int) -> tuple[Image.Image, int]:
    """Decode a picture of a data set, in RGB, and return it with its label.

    timm's own reading would step to the next position where a file is broken, which may be a
    held-out one.
    """
    if isinstance(dataset, ImageDataset):
        file, label, *_ = dataset.reader[index]
        with closing(file):
            return Image.open(file).convert("RGB"), int(label)
    picture, label = dataset[index]
    return picture.convert("RGB"), int(label)
