"""Opening a data set by its name, with its classes; reading its images; and loading batches.

Images come as prediction reads them, whatever the data set: upright, 8 bits, transparency on white.
"""

from __future__ import annotations

import io
import re
import signal
import traceback
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageDataset, create_dataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autoformer_zoo.classify.folders import ImageFolder
from autoformer_zoo.classify.images import read_image
from training.data.batch import Batch, Batching, DataError
from training.data.splits import folder_of, is_folder
from training.settings.config import DataConfig

# What decoders raise on damaged files; anything else is an error in this package.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError)
Sample = tuple[Tensor, int, int]
"""An image (3, height, width), its label, and how many broken ones were met before it."""


def open_dataset(
    data: DataConfig,
    data_dir: Path,
    split: str,
    seed: int,
    class_to_idx: Mapping[str, int] | None = None,
) -> Dataset[Any]:
    """Open a split whose images have positions, or a stream of timm's; without transforms.

    Args:
        data: names the data set.
        data_dir: its root.
        split: its name in the data set.
        seed: decides the order of a stream.
        class_to_idx: label of each class of a folder, if known; see `ImageFolder`.

    Raises:
        FileNotFoundError: it is missing, or timm does not know it.
        ValueError: a folder has no class, an empty or an unknown one.
    """
    if is_folder(data.source):
        return ImageFolder(folder_of(data_dir, split), class_to_idx)
    try:
        dataset = create_dataset(
            data.source,
            str(data_dir),
            split,
            is_training=split == data.train_split,  # of streams: shuffled
            download=data.download,
            seed=seed,
            # Only this reader takes Pillow's images as they are; `decode` converts them.
            input_img_mode="" if data.source.lower().startswith("hfids/") else "RGB",
        )
    except (RuntimeError, AssertionError) as error:  # how timm and torchvision refuse
        raise FileNotFoundError(f"{data.source} under {data_dir}, split {split}: {error}") from None
    if hasattr(dataset, "loader"):  # torchvision's, of image files
        dataset.loader = read_image
    return dataset


def class_names_of(dataset: Dataset[Any]) -> tuple[str, ...]:
    """Return the name of each class, in the order of the labels; empty if it does not name them."""
    found: Any = getattr(getattr(dataset, "reader", dataset), "class_to_idx", None)
    names = getattr(dataset, "classes", ()) or sorted(found or (), key=lambda name: found[name])
    # torchvision's ImageNet has several names of each class.
    return tuple(name if isinstance(name, str) else ", ".join(name) for name in names)


def labels_of(dataset: Dataset[Any]) -> Tensor | None:
    """Return all labels of a data set with positions; None if that needs decoding."""
    reader: Any = getattr(dataset, "reader", dataset)
    found: Iterable[Any] | None = None
    if isinstance(reader, ImageFolder):
        found = (label for _, label in reader.samples)
    elif hasattr(reader, "label_key"):  # a Hugging Face data set
        found = reader.dataset[reader.label_key]
    else:  # torchvision's
        names = [name for name in ("targets", "_labels") if hasattr(dataset, name)]
        found = getattr(dataset, names[0]) if names else None
    return None if found is None else torch.as_tensor(list(found), dtype=torch.long)


def read_sample(dataset: Dataset[Any], index: int) -> tuple[Image.Image, int]:
    """Read an image of a data set with positions, and its label.

    Raises:
        OSError, ValueError and others of `BROKEN`: the image is damaged. timm's own reading would
            take the image at the next position, which may be a held-out one.
    """
    if isinstance(dataset, ImageDataset):
        file, label, *_ = dataset.reader[index]
        with closing(file):
            return decode(file), int(label)
    image, label = dataset[index]
    return (image if isinstance(dataset, ImageFolder) else decode(image)), int(label)


def decode(image: Any) -> Image.Image:
    """Return an image as RGB, as `read_image` does; also from bytes."""
    return read_image(io.BytesIO(image) if isinstance(image, bytes) else image)


def load(
    samples: Dataset[Sample], batching: Batching, source: str, **options: Any
) -> Iterator[Batch]:
    """Yield the batches that workers make.

    Args:
        samples: what makes an image.
        batching: gives device, workers and the number of classes.
        source: name of the data, for errors.
        options: of PyTorch's loader: how batches are formed.

    Raises:
        DataError: too many images cannot be read, or a label is missing or unknown.
        ValueError: a label is beyond the network's classes.
    """
    device = batching.ranks.device
    loader: DataLoader[Any] = DataLoader(
        samples,
        num_workers=batching.workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_signals,
        **options,
    )
    try:
        for x, labels, broken in loader:
            batching.require_classes(labels, source)
            yield Batch(
                x.to(device, non_blocking=True),
                labels.to(device, non_blocking=True),
                int(broken.sum()),
            )
    except Exception as error:
        # Their variables keep the loader alive, and with it workers that ignore signals: the
        # process would wait for these at its end.
        traceback.clear_frames(error.__traceback__)
        if not isinstance(error, DataError):
            raise
        # PyTorch puts a worker's traceback into the text; the last line is what the worker raised.
        text = re.sub(r".*DataError: ", "", str(error), flags=re.DOTALL)
        raise DataError(" ".join(text.split())) from None


def ignore_signals(_: int) -> None:
    """Leave Ctrl-C and termination to the training process, which stops its workers itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
