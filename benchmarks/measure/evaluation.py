"""Counting right answers: a classifier over a data set, by class, and by ImageNet-ReaL labels.

Data sets are timm's, by name, and so are the preparation of images and the ReaL labels. What can be
scored is defined in `classifiers.py`; the command is `benchmarks/accuracy.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageDataset, RealLabelsImagenet, create_dataset, create_loader
from torch import Tensor

from benchmarks.measure.classifiers import Classifier

TOP = 5
SHIPPED_REAL = "timm"  # the labels that come with timm


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


def open_dataset(name: str, root: Path, split: str, class_map: Path | None = None) -> Any:
    """Open one of timm's data sets.

    Args:
        name: "" for a folder of folders, one a class; "wds/", "tfds/", "hfds/..." and
            "torch/cifar10" as timm has them.
        root: its folder.
        split: timm's name of the split.
        class_map: file that gives folders their class, for folders.

    Raises:
        ValueError: timm cannot open it.
    """
    if not root.exists():
        raise ValueError(f"{root} does not exist; expected the folder of a data set")
    kinds = {"class_map": str(class_map)} if class_map else {}
    try:
        dataset: Any = create_dataset(name, root=str(root), split=split, **kinds)
    except (RuntimeError, AssertionError, ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"timm cannot open {name or 'a folder'} in {root}: {reason}") from None
    if isinstance(dataset, ImageDataset):
        dataset._max_retries = 1  # timm would count the next image twice for a broken one
    return dataset


def check_classes(dataset: Any, classifier: Classifier) -> None:
    """Refuse a folder whose classes cannot be the classifier's outputs.

    Raises:
        ValueError: their numbers differ.
    """
    classes = getattr(getattr(dataset, "reader", dataset), "class_to_idx", None)
    if classes and len(set(classes.values())) != classifier.num_classes:
        raise ValueError(
            f"the data set has {len(classes)} classes, {classifier.name} has "
            f"{classifier.num_classes} outputs; --class-map says which folder is which output"
        )


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
    """Run a classifier over a data set.

    Args:
        classifier: what to score.
        dataset: from `open_dataset`.
        batch_size: images at a time.
        workers: processes that prepare images.
        limit: images to stop after, at the end of a batch.
        real: ReaL labels from `open_real_labels`.

    Raises:
        ValueError: an image cannot be read, or a label is not one of the classifier's outputs.
    """
    check_classes(dataset, classifier)
    counts = AnswerCounts(torch.zeros(classifier.num_classes, 3, dtype=torch.long), real)
    loader = create_loader(
        dataset,
        classifier.data["input_size"],
        batch_size,
        interpolation=classifier.data["interpolation"],
        mean=classifier.data["mean"],
        std=classifier.data["std"],
        crop_pct=classifier.data["crop_pct"],
        crop_mode=classifier.data.get("crop_mode"),
        num_workers=workers,
        device=torch.device("cpu"),
        use_prefetcher=False,  # images are normalised as in prediction
    )
    for images, labels in _readable(loader):
        if int(labels.min()) < 0 or int(labels.max()) >= classifier.num_classes:
            raise ValueError(
                f"a label is {int(labels.max())}; {classifier.name} has "
                f"{classifier.num_classes} outputs"
            )
        start = time.perf_counter()
        scores = classifier.run(images)
        counts.seconds += time.perf_counter() - start
        counts.add(scores, labels)
        if limit is not None and counts.images >= limit:
            break
    if not counts.images:
        raise ValueError("the data set holds no image")
    return counts


def _readable(loader: Any) -> Iterator[Any]:
    try:
        yield from loader
    except (RuntimeError, OSError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"an image of the data set cannot be read: {text[-200:]}") from error
