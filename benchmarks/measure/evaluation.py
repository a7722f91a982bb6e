"""Counting right answers: a classifier over a data set, by class, and by ImageNet-ReaL labels.

The data sets are timm's by name, and so is the preparation of images: nothing of either is made
here. What is scored is `classifiers.py`, the command `accuracy.py`.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageDataset, create_dataset, create_loader
from torch import Tensor

from benchmarks.measure.classifiers import Classifier

TOP = 5
SHIPPED_REAL = "timm"  # the labels that come with timm
VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.")


@dataclass(slots=True)
class Score:
    """Right answers so far.

    Args:
        by_class: images, right best answers and right five best, of each class (classes, 3).
        real: images that have ReaL labels, right best answers and right five best; zeros where
            no ReaL labels were given.
        seconds: in the classifier, without the loading of images.
    """

    by_class: Tensor
    real: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.long))
    seconds: float = 0.0

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.by_class[:, 0].sum())

    def percent(self, column: int) -> float:
        """Return top-1 (1) or top-5 (2) in percent of all images."""
        return 100 * float(self.by_class[:, column].sum()) / self.images

    def real_percent(self, column: int) -> float | None:
        """Return top-1 (1) or top-5 (2) by ReaL labels in percent; None without any."""
        return 100 * float(self.real[column]) / float(self.real[0]) if self.real[0] else None

    def add(self, scores: Tensor, labels: Tensor, real: Sequence[set[int]]) -> None:
        """Count a batch.

        Args:
            scores: (B, classes), the higher the likelier.
            labels: right classes (B,).
            real: ReaL labels of each image, none where it has none; empty for no such labels.
        """
        best = scores.topk(min(TOP, scores.shape[1]), dim=1).indices  # (B, 5)
        right = best == labels[:, None]
        hits = torch.stack([torch.ones_like(labels), right[:, 0], right.any(1)], 1).long()
        self.by_class.index_add_(0, labels, hits)
        for answers, wanted in zip(best.tolist(), real, strict=bool(real)):
            if wanted:
                found = [answer in wanted for answer in answers]
                self.real += torch.tensor([1, found[0], any(found)])


def open_dataset(name: str, root: Path, split: str, class_map: Path | None = None) -> Any:
    """Open one of timm's data sets.

    Args:
        name: "" for a folder of folders, one a class; "wds/", "tfds/", "hfds/..." and
            "torch/cifar10" as timm has them.
        root: its folder.
        split: timm's name of the part.
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


def read_real_labels(source: str) -> list[set[int]]:
    """Read ImageNet-ReaL labels: right classes of each validation image, in their order.

    Args:
        source: a JSON file, a list of lists; or "timm" for the one that timm ships.

    Raises:
        ValueError: the file holds something else.
    """
    path = Path(source)
    if source == SHIPPED_REAL:
        path = Path(sys.modules["timm.data"].__path__[0], "_info", "imagenet_real_labels.json")
    labels = json.loads(path.read_text())
    if not isinstance(labels, list) or not all(isinstance(each, list) for each in labels):
        raise ValueError(f"{source} is no list of lists of classes; expected ReaL's real.json")
    return [set(each) for each in labels]


def evaluate(
    classifier: Classifier,
    dataset: Any,
    batch_size: int,
    workers: int = 0,
    limit: int | None = None,
    real: Sequence[set[int]] = (),
) -> Score:
    """Run a classifier over a data set.

    Args:
        classifier: what to score.
        dataset: from `open_dataset`.
        batch_size: images at a time.
        workers: processes that prepare images.
        limit: images to stop after, at the end of a batch.
        real: ReaL labels from `read_real_labels`; the images' names must be ImageNet's.

    Raises:
        ValueError: a image cannot be read or is not named as ImageNet's, or a label is none of
            the classifier's outputs.
    """
    check_classes(dataset, classifier)
    score = Score(torch.zeros(classifier.num_classes, 3, dtype=torch.long))
    names = _names(dataset) if real else iter(())
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
        score.seconds += time.perf_counter() - start
        score.add(scores, labels, [_real_of(next(names), real) for _ in labels] if real else [])
        if limit is not None and score.images >= limit:
            break
    if not score.images:
        raise ValueError("the data set holds no image")
    return score


def _readable(loader: Any) -> Iterator[Any]:
    try:
        yield from loader
    except (RuntimeError, OSError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"a image of the data set cannot be read: {text[-200:]}") from error


def _names(dataset: Any) -> Iterator[str]:
    if not hasattr(dataset, "filenames"):
        raise ValueError("ReaL labels go by the images' names, which this data set has not")
    return iter(dataset.filenames(basename=True))


def _real_of(name: str, real: Sequence[set[int]]) -> set[int]:
    found = VALIDATION_NAME.match(name)
    if not found or not 1 <= int(found[1]) <= len(real):
        raise ValueError(f"{name} is not named as ImageNet's validation images, which ReaL needs")
    return real[int(found[1]) - 1]
