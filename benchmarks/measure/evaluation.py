"""Counting right answers: a classifier over a data set, by class, and by ImageNet-ReaL labels.

Images are read and prepared as in prediction, from folders and from timm's data sets alike. Classes
are matched by name: the order in which a data set lists them does not matter. ReaL labels are
timm's. What can be scored is defined in `classifiers.py`; the command is `benchmarks/accuracy.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageDataset, ImageNetInfo, RealLabelsImagenet, create_dataset
from timm.data.readers.class_map import load_class_map
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from autoformer_zoo.classify.folders import ImageFolder
from autoformer_zoo.classify.images import read_image
from benchmarks.measure.classifiers import Classifier

TOP = 5
SHIPPED_REAL = "timm"  # the labels that come with timm
SPLIT_FOLDERS = {"validation": ("validation", "val"), "train": ("train", "training")}

_log = logging.getLogger("benchmarks.evaluation")


@dataclass(slots=True)
class AnswerCounts:
    """Right answers of a classifier.

    Args:
        by_class: number of images, of right best answers and of right answers among the five best,
            for each class (classes, 3).
        real: answers compared with ReaL labels, if there are any.
        seconds: time in the classifier, without the loading of images.
    """

    by_class: Tensor
    real: Any = None  # timm's RealLabelsImagenet
    seconds: float = 0.0

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.by_class[:, 0].sum())

    @property
    def real_images(self) -> int:
        """Number of images that have a ReaL label."""
        return len(self.real.is_correct[1]) if self.real else 0

    def percent(self, top: int) -> float:
        """Return top-1 or top-5 in percent of all images."""
        return 100 * float(self.by_class[:, 1 if top == 1 else 2].sum()) / self.images

    def real_percent(self, top: int) -> float | None:
        """Return top-1 or top-5 by ReaL labels in percent; None without labels."""
        return self.real.get_accuracy(top) if self.real_images else None

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            scores: (B, classes), higher is likelier.
            labels: right classes (B,).

        Raises:
            ValueError: ReaL has no label for an image of that name.
        """
        best = scores.topk(min(TOP, scores.shape[1]), dim=1).indices  # (B, 5)
        right = best == labels[:, None]
        counts = torch.stack([torch.ones_like(labels), right[:, 0], right.any(1)], 1).long()
        self.by_class.index_add_(0, labels, counts)
        if self.real is None:
            return
        try:
            self.real.add_result(scores)
        except KeyError as error:
            raise ValueError(f"ReaL has no label for an image named {error}") from None


def open_dataset(
    name: str, root: Path, split: str, labels: Sequence[str], class_map: Path | None = None
) -> Any:
    """Open a folder of classes, or one of timm's data sets by its name.

    Args:
        name: "" for a folder of folders, one for each class; "wds/", "tfds/", "hfds/..." and
            "torch/cifar10" as timm has them.
        root: its folder.
        split: name of the split; of a folder, a subfolder of that name or the folder itself.
        labels: name of each of the classifier's outputs. Class folders are named so, or by
            ImageNet's WordNet ids.
        class_map: file that gives class folders their label, as timm reads it.

    Raises:
        ValueError: it cannot be opened, or a class folder is not named as one of the labels.
    """
    try:
        if not name and root.is_dir():
            known = load_class_map(str(class_map)) if class_map else labels_by_name(labels)
            return ImageFolder(_split_folder(root, split), known)
        # Without a mode timm leaves images as they are: they become RGB as in prediction.
        kwargs: dict[str, Any] = {"class_map": str(class_map)} if class_map else {}
        dataset: Any = create_dataset(name, str(root), split, input_img_mode="", **kwargs)
    except (RuntimeError, AssertionError, ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot open {name or 'a folder'} in {root}: {reason}") from None
    if isinstance(dataset, ImageDataset):
        dataset._max_retries = 1  # timm would count the next image twice instead of a broken one
    if hasattr(dataset, "loader"):  # torchvision's, of image files
        dataset.loader = read_image
    return dataset


def labels_by_name(labels: Sequence[str]) -> dict[str, int]:
    """Return the label of each name, for ImageNet's classes also by WordNet id."""
    known = {name: label for label, name in enumerate(labels) if labels.count(name) == 1}
    imagenet = ImageNetInfo("imagenet-1k")
    if list(labels) == imagenet.label_descriptions():  # two of these are "crane"
        known |= {name: label for label, name in enumerate(imagenet.label_names())}
    return known


def match_labels(dataset: Any, classifier: Classifier) -> Tensor | None:
    """Return the classifier's label for each of the data set's; None if they are the same.

    Raises:
        ValueError: neither the names nor the number of the classes are the classifier's.
    """
    if isinstance(dataset, ImageFolder):  # opened with the classifier's labels
        return None
    names = _class_names(dataset)
    known = labels_by_name(classifier.labels)
    if names and all(name in known for name in names):
        return torch.tensor([known[name] for name in names])
    if names and len(names) != classifier.num_classes:
        raise ValueError(
            f"the data set has {len(names)} classes, {classifier.name} has "
            f"{classifier.num_classes} outputs, and their names differ: {names[0]!r}, "
            f"{classifier.labels[0]!r}"
        )
    _log.warning(
        "%s: classes are matched by number, for the data set %s",
        *(classifier.name, "names them otherwise" if names else "does not name them"),
    )
    return None


def open_real_labels(source: str, dataset: Any) -> RealLabelsImagenet:
    """Open ReaL labels for a data set.

    Args:
        source: "timm" for the labels that come with timm, or a file in the format of real.json.
        dataset: ImageNet's whole validation set, from `open_dataset`.

    Raises:
        ValueError: the file or the data set is another one.
    """
    if not hasattr(dataset, "filenames"):
        raise ValueError("ReaL labels need the images' names, which this data set does not have")
    names = dataset.filenames(basename=True)
    try:
        return RealLabelsImagenet(names, None if source == SHIPPED_REAL else source)
    except (AssertionError, ValueError, TypeError):
        raise ValueError(
            f"{source} does not hold ReaL labels of {len(names)} images: expected real.json and "
            "ImageNet's whole validation set"
        ) from None


def evaluate(
    classifier: Classifier,
    dataset: Any,
    batch_size: int,
    workers: int = 0,
    limit: int | None = None,
    real: RealLabelsImagenet | None = None,
) -> AnswerCounts:
    """Run a classifier over a data set, with a progress bar on a terminal.

    Args:
        classifier: what to score.
        dataset: from `open_dataset`; its transform becomes the classifier's.
        batch_size: images at a time.
        workers: processes that prepare images.
        limit: images to stop after, at the end of a batch.
        real: ReaL labels from `open_real_labels`.

    Raises:
        ValueError: an image cannot be read, or a label is not one of the classifier's outputs.
    """
    mapping = match_labels(dataset, classifier)
    counts = AnswerCounts(torch.zeros(classifier.num_classes, 3, dtype=torch.long), real)
    dataset.transform = _ReadAndPrepare(classifier.prepare)
    if hasattr(dataset, "set_loader_cfg"):  # streams divide themselves among the workers
        dataset.set_loader_cfg(num_workers=workers)
    total = min(len(dataset), limit or len(dataset)) or None  # some streams have no length
    with tqdm(desc=classifier.name, total=total, unit="image", disable=None) as bar:
        for images, labels in _readable(DataLoader(dataset, batch_size, num_workers=workers)):
            labels = labels if mapping is None else mapping[labels]
            if int(labels.min()) < 0 or int(labels.max()) >= classifier.num_classes:
                raise ValueError(
                    f"a label is {int(labels.max())}; {classifier.name} has "
                    f"{classifier.num_classes} outputs"
                )
            start = time.perf_counter()
            scores = classifier.run(images)
            counts.seconds += time.perf_counter() - start
            counts.add(scores, labels)
            bar.update(len(labels))
            if limit is not None and counts.images >= limit:
                break
    if not counts.images:
        raise ValueError("the data set holds no image")
    return counts


@dataclass(frozen=True, slots=True)
class _ReadAndPrepare:
    """A transform that can be sent to workers."""

    prepare: Callable[[Image.Image], Any]

    def __call__(self, image: Any) -> Any:
        return self.prepare(read_image(image))


def _split_folder(root: Path, split: str) -> Path:
    folders = (root / name for name in SPLIT_FOLDERS.get(split, (split,)))
    return next((folder for folder in folders if folder.is_dir()), root)


def _class_names(dataset: Any) -> tuple[str, ...]:
    """Return the name of each class in the order of the labels; empty if there are none."""
    found: Mapping[str, int] = getattr(getattr(dataset, "reader", dataset), "class_to_idx", {})
    names = getattr(dataset, "classes", None) or sorted(found or (), key=lambda name: found[name])
    # torchvision's ImageNet has several names of each class.
    return tuple(name if isinstance(name, str) else ", ".join(name) for name in names)


def _readable(loader: DataLoader[Any]) -> Iterator[Any]:
    try:
        yield from loader
    except (RuntimeError, OSError, ValueError) as error:
        # A worker's error has its whole traceback as its text; the cause is its last line.
        text = str(error).strip().splitlines()[-1]
        raise ValueError(f"an image of the data set cannot be read: {text}") from error
