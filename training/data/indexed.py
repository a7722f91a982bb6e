"""Batches from data sets whose images have positions: folders, torchvision's, Hugging Face's.

What happens to an image follows from (seed, its number in the run), whatever the number of workers,
and a resumed run starts at the right batch without decoding the ones before. Streams have no
positions: `streams.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from training.data.batch import (
    EVAL_BATCH,
    UNREADABLE,
    Answers,
    Batch,
    Batching,
    DataError,
    mixed_seed,
    seed_all,
)
from training.data.datasets import BROKEN, Sample, load, read_sample
from training.data.transforms import Transform, eval_transform, train_transform
from training.data.views import view_numbers
from training.run.schedule import Schedule, StepPlan
from training.settings.config import AugmentConfig, DataConfig

MAX_REPLACED = 10  # broken images in a row before training gives up


@dataclass(frozen=True, slots=True)
class Part:
    """Some images of a data set.

    Args:
        dataset: has images by position.
        indices: int64 (n,), the positions.
    """

    dataset: Dataset[Any]
    indices: Tensor

    @classmethod
    def whole(cls, dataset: Any) -> Part:
        """Return all images of a data set."""
        return cls(dataset, torch.arange(len(dataset)))

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True, slots=True)
class Key:
    """Which image a worker must make, and how."""

    number: int | None  # in the run, which decides its augmentation; None: evaluation, without any
    index: int  # position in the data set
    img_size: int


class IndexedSource:
    """Images that are read by position.

    Args:
        train_part: images to train on.
        held_out_part: images for choosing; of the same data set, or of a split of their own.
        class_names: name of each class, if known.
        data: how images are resized and normalised.
        augment: how training images are changed.
        batching: how batches are formed.
    """

    def __init__(
        self,
        train_part: Part,
        held_out_part: Part,
        class_names: tuple[str, ...],
        data: DataConfig,
        augment: AugmentConfig,
        batching: Batching,
    ) -> None:
        self.class_names, self.num_classes = class_names, batching.num_classes
        self.num_train, self.num_held_out = len(train_part), len(held_out_part)
        is_cut = held_out_part.dataset is train_part.dataset
        self.held_out_list = held_out_part.indices.tolist() if is_cut else []
        self._train, self._held_out = train_part, held_out_part
        self._data, self._augment, self._batching = data, augment, batching
        self._answers: Answers | None = None

    def use_answers(self, answers: Answers) -> None:
        """Show in epoch e the view e mod `answers.views` of each image, with its answer."""
        self._answers = answers

    def train(self, schedule: Schedule, first: int, end: int) -> Generator[Batch, None, None]:
        """Yield this process's parts of the batches of steps first..end-1, in order."""
        make = partial(train_transform, self._data, self._augment)
        batches = self._load(self._train, make, self._train_keys(schedule, first, end))
        if not self._answers:
            yield from batches
            return
        parts = self._train_parts(schedule, first, end)
        for batch, (plan, _, positions) in zip(batches, parts, strict=True):
            answers = self._answers.of(positions, plan.epoch % self._answers.views)
            yield replace(batch, answers=answers.to(batch.x.device))

    def view(self, view: int, img_size: int) -> Iterator[Batch]:
        """Yield all training images in order, augmented as a fixed view of theirs."""
        parts = torch.arange(self.num_train).split(EVAL_BATCH)
        keys = (self._keys(view_numbers(part, view), part, img_size) for part in parts)
        make = partial(train_transform, self._data, self._augment)
        yield from self._load(self._train, make, keys)

    def held_out(self, img_size: int) -> Iterator[Batch]:
        """Yield this process's share of the held-out images, only resized and normalised."""
        keys = [Key(None, index, img_size) for index in self._held_out.indices.tolist()]
        batches = [keys[start : start + EVAL_BATCH] for start in range(0, len(keys), EVAL_BATCH)]
        ranks = self._batching.ranks
        make = partial(eval_transform, self._data)
        yield from self._load(self._held_out, make, batches[ranks.rank :: ranks.world])

    def _train_keys(self, schedule: Schedule, first: int, end: int) -> Iterator[list[Key]]:
        for plan, places, positions in self._train_parts(schedule, first, end):
            numbers = plan.step * self._batching.size + places
            if self._answers:
                numbers = view_numbers(positions, plan.epoch % self._answers.views)
            yield self._keys(numbers, positions, plan.img_size)

    def _train_parts(
        self, schedule: Schedule, first: int, end: int
    ) -> Iterator[tuple[StepPlan, Tensor, Tensor]]:
        """Yield for each part of this process the plan, the places in the batch, the positions."""
        batching = self._batching
        for step in range(first, end):
            plan = schedule.plan(step)
            batch = batching.positions(plan, self.num_train)
            for part in batching.ranks.own_parts:
                places = torch.arange(part, len(batch), batching.ranks.parts)
                yield plan, places, batch[places]

    def _keys(self, numbers: Tensor, positions: Tensor, img_size: int) -> list[Key]:
        indices = self._train.indices[positions].tolist()
        pairs = zip(numbers.tolist(), indices, strict=True)
        return [Key(number, index, img_size) for number, index in pairs]

    def _load(
        self, part: Part, make: Callable[[int], Transform], batches: Iterable[list[Key]]
    ) -> Iterator[Batch]:
        images = KeyedImages(part, make, self._batching.seed)
        yield from load(images, self._batching, self._data.source, batch_sampler=batches)


class KeyedImages(Dataset[Sample]):
    """Images by key, each augmented from a seed of its own.

    Args:
        part: the images; each may take the place of a broken one.
        make_transform: from the input size in pixels.
        seed: seed of the run.
    """

    def __init__(self, part: Part, make_transform: Callable[[int], Transform], seed: int) -> None:
        self._part = part
        self._make_transform = make_transform
        self._seed = seed
        self._transforms: dict[int, Transform] = {}  # made by each worker for itself

    def __getitem__(self, key: Key) -> Sample:
        """Make an image; one that cannot be read is replaced in training, blank in evaluation.

        Raises:
            DataError: too many images in a row are broken.
        """
        if key.img_size not in self._transforms:
            self._transforms[key.img_size] = self._make_transform(key.img_size)
        transform = self._transforms[key.img_size]
        if key.number is None:
            try:
                image, label = read_sample(self._part.dataset, key.index)
            except BROKEN:
                return torch.zeros(3, key.img_size, key.img_size), UNREADABLE, 1
            return transform(image), label, 0
        image, label, broken = self._read_or_replace(key.number, key.index)
        seed_all(mixed_seed(self._seed, key.number, "sample"))
        return transform(image), label, broken

    def _read_or_replace(self, number: int, index: int) -> tuple[Image.Image, int, int]:
        rng = random.Random(f"{self._seed}/{number}/instead")
        for broken in range(MAX_REPLACED):
            try:
                return *read_sample(self._part.dataset, index), broken
            except BROKEN as error:
                reason = error
            index = int(self._part.indices[rng.randrange(len(self._part))])
        raise DataError(
            f"{MAX_REPLACED} images in a row could not be read, the last with: {reason}; "
            "the data set seems damaged"
        )
