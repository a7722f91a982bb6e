"""Batches from timm's data sets: folders, torchvision's, Hugging Face's.

Images are read by position: what happens to one follows from (seed, its number in the run),
whatever the number of workers, and a run that goes on starts at the right batch without decoding
what was done. Streams have no positions: `streams.py`.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from training.config import Resources, TrainConfig, space_of
from training.data.batch import (
    EVAL_BATCH,
    Batch,
    epoch_order,
    held_out_indices,
    mixed_seed,
    require_classes,
    seed_all,
)
from training.data.datasets import (
    BROKEN,
    Sample,
    damaged,
    labels_of,
    load,
    open_split,
    read_image,
)
from training.data.transforms import Transform, eval_transform, train_transform
from training.run.distributed import Ranks
from training.run.schedule import Schedule

MOST_REPLACED = 10  # broken images in a row before training gives up
EVALUATION = -1  # number of a image that is evaluated: nothing random happens to it


@dataclass(frozen=True, slots=True)
class Key:
    """Which image a worker shall make, and how."""

    number: int  # in the run, so that its augmentation is its own; or EVALUATION
    index: int  # position in the data set
    img_size: int


class IndexedSource:
    """A data set whose images are read by position.

    Args:
        config: what to train.
        data_dir: root of the data.
        dataset: the training split.
        ranks: this process among all.
        resources: for the number of workers.

    Raises:
        ValueError: labels cannot be had without decoding, a class has too few images, or there
            are more classes than the network has.
    """

    def __init__(
        self,
        config: TrainConfig,
        data_dir: Path,
        dataset: Dataset[Any],
        ranks: Ranks,
        resources: Resources,
    ) -> None:
        self._config, self._ranks, self._workers = config, ranks, resources.workers
        self._dataset, self._held_out_set = dataset, dataset
        size = len(dataset)  # type: ignore[arg-type]
        labels = self._checked_labels(dataset)
        train = torch.arange(size)
        held_out = torch.empty(0, dtype=torch.long)
        if config.data.held_out_split:
            self._held_out_set = open_split(config, data_dir, config.data.held_out_split)
            held_out = torch.arange(len(self._held_out_set))  # type: ignore[arg-type]
            self._checked_labels(self._held_out_set)
        elif config.held_out_per_class:
            if labels is None:
                raise ValueError(
                    f"{config.data.source} does not tell its labels without decoding, so that no "
                    "split can be cut; expected data.held_out_split, or held_out_per_class 0"
                )
            held_out = held_out_indices(labels, config.held_out_per_class, config.seed)
            keep = torch.ones(size, dtype=torch.bool)
            keep[held_out] = False
            train = keep.nonzero().squeeze(1)
        self._train_indices, self._held_out_indices = train, held_out
        self.num_train, self.num_held_out = len(train), len(held_out)
        self.held_out_list = [] if config.data.held_out_split else held_out.tolist()

    def _checked_labels(self, dataset: Dataset[Any]) -> Tensor | None:
        labels = labels_of(dataset)
        if labels is not None:
            config = self._config
            require_classes(labels, space_of(config).num_classes, config.data.source)
        return labels

    def train(self, schedule: Schedule, first: int, end: int) -> Generator[Batch, None, None]:
        """Yield this process's parts of the batches of steps first..end-1, in order."""
        sizes = {stage.img_size for stage in self._config.stages}
        images = KeyedImages(
            self._dataset,
            self._train_indices,
            {size: train_transform(self._config, size) for size in sizes},
            self._config.seed,
        )
        yield from self._load(images, self._train_keys(schedule, first, end))

    def held_out(self, img_size: int) -> Iterator[Batch]:
        """Yield this process's share of the held-out images, unchanged but for their size."""
        transforms = {img_size: eval_transform(self._config, img_size)}
        images = KeyedImages(
            self._held_out_set, self._held_out_indices, transforms, self._config.seed
        )
        keys = [Key(EVALUATION, index, img_size) for index in self._held_out_indices.tolist()]
        batches = [keys[start : start + EVAL_BATCH] for start in range(0, len(keys), EVAL_BATCH)]
        yield from self._load(images, batches[self._ranks.rank :: self._ranks.world])

    def _train_keys(self, schedule: Schedule, first: int, end: int) -> Iterator[list[Key]]:
        config, parts = self._config, self._ranks.parts
        for step in range(first, end):
            plan = schedule.plan(step)
            order = epoch_order(self.num_train, config.seed, plan.epoch, config.augment.repeats)
            start = plan.batch_in_epoch * config.batch_size
            batch = self._train_indices[order[start : start + config.batch_size]].tolist()
            keys = [
                Key(step * config.batch_size + place, index, plan.img_size)
                for place, index in enumerate(batch)
            ]
            for part in self._ranks.own_parts:
                yield keys[part::parts]

    def _load(self, images: KeyedImages, batches: Iterable[list[Key]]) -> Iterator[Batch]:
        return load(images, self._config, self._ranks, self._workers, batch_sampler=batches)


class KeyedImages(Dataset[Sample]):
    """Images by key, each augmented from a seed of its own.

    Args:
        dataset: what to read from.
        indices: positions that may stand in for a broken image.
        transforms: by input size in pixels.
        seed: of the run.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        indices: Tensor,
        transforms: Mapping[int, Transform],
        seed: int,
    ) -> None:
        self._dataset = dataset
        self._indices = indices
        self._transforms = transforms
        self._seed = seed

    def __getitem__(self, key: Key) -> Sample:
        """Return a image, or what says that too many in a row are broken."""
        transform = self._transforms[key.img_size]
        if key.number == EVALUATION:
            try:
                image, label = read_image(self._dataset, key.index)
            except BROKEN:
                return torch.zeros(3, key.img_size, key.img_size), -1, 1, ""
            return transform(image), label, 0, ""
        found = self._read_or_replace(key)
        if isinstance(found, str):
            return damaged(found, key.img_size)
        image, label, broken = found
        seed_all(mixed_seed(self._seed, key.number, "sample"))
        return transform(image), label, broken, ""

    def _read_or_replace(self, key: Key) -> tuple[Image.Image, int, int] | str:
        index, rng = key.index, random.Random(f"{self._seed}/{key.number}/instead")
        for broken in range(MOST_REPLACED):
            try:
                return *read_image(self._dataset, index), broken
            except BROKEN as error:
                reason = error
            index = int(self._indices[rng.randrange(len(self._indices))])
        return (
            f"{MOST_REPLACED} images in a row could not be read, the last with: {reason}; "
            "the data set seems damaged"
        )
