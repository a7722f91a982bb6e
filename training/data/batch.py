"""What every source of batches shares: the batch, the protocol, and the order of training images.

What a batch holds follows from (seed, step, part) alone, whatever the number of processes and
workers that decode it, so that a resumed run continues with the batch that it would have had.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor

from training.run.distributed import Ranks
from training.run.schedule import Schedule, StepPlan

EVAL_BATCH = 100  # nano on 2 cores: 4 % faster than 125, 25 % than 250, and 20 are no better
UNREADABLE = -1  # label of a held-out image that could not be read


class DataError(ValueError):
    """The data cannot be used: too many images are broken, or a label is missing or unknown."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Images ready for a network.

    Args:
        x: float32 (n, 3, height, width), normalised.
        labels: int64 (n,); UNREADABLE for a held-out image that could not be read.
        broken: images that could not be read. In training, others took their places.
        answers: float32 (n, num_classes), a teacher's logits for these very images; None without.
    """

    x: Tensor
    labels: Tensor
    broken: int = 0
    answers: Tensor | None = None


class Answers(Protocol):
    """A teacher's answers to fixed views of the training images (`engine/teacher/answers.py`)."""

    views: int
    """Number of views of each image."""

    def of(self, positions: Tensor, view: int) -> Tensor:
        """Return the float32 logits (n, num_classes) for a view of the images at positions."""
        ...


class DataSource(Protocol):
    """Training and held-out images. No source has the test split: see `open.open_test`."""

    class_names: tuple[str, ...]
    """Name of each class, in the order of the labels; empty if the source does not name them."""
    num_classes: int
    """Outputs that the network must have: as the config says, else the data, else the space."""
    num_train: int
    """Number of training images, without the held-out ones."""
    num_held_out: int
    """Number of images that `held_out` yields in all processes; 0 if only reading them shows it."""
    held_out_list: list[int]
    """Positions of held-out images in the training set; empty if they are a split of their own."""

    def train(self, schedule: Schedule, first: int, end: int) -> Generator[Batch, None, None]:
        """Yield this process's parts of the batches of steps first..end-1, in order."""
        ...

    def held_out(self, img_size: int) -> Iterator[Batch]:
        """Yield this process's share of the held-out images, only resized and normalised."""
        ...


@runtime_checkable
class ViewSource(DataSource, Protocol):
    """A source whose images have positions, so that a teacher's answers to them can be stored."""

    def view(self, view: int, img_size: int) -> Iterator[Batch]:
        """Yield all training images in order, augmented as a fixed view of theirs."""
        ...

    def use_answers(self, answers: Answers) -> None:
        """Show in epoch e the view e mod `answers.views` of each image, with its answer."""
        ...


@dataclass(frozen=True, slots=True)
class Batching:
    """How a source forms batches.

    Args:
        size: images of a step, over all processes and accumulated parts.
        seed: seed of the run.
        repeats: augmented copies of an image in an epoch.
        num_classes: outputs of the network; labels must be below.
        ranks: this process among all.
        workers: processes that decode and augment, for this process.
    """

    size: int
    seed: int
    repeats: int
    num_classes: int
    ranks: Ranks
    workers: int = 0

    def positions(self, plan: StepPlan, num_images: int) -> Tensor:
        """Return which of the training images are in the batch of a step, over all processes."""
        order = epoch_order(num_images, self.seed, plan.epoch, self.repeats)
        return order[plan.batch_in_epoch * self.size : (plan.batch_in_epoch + 1) * self.size]

    def copies(self, plan: StepPlan, places: Tensor) -> Tensor:
        """Return which copy of its image in the epoch, from 0 on, each place of a batch has."""
        return (plan.batch_in_epoch * self.size + places) % self.repeats

    def require_classes(self, labels: Tensor | None, source: str) -> None:
        """Check that the network has an output for each label.

        Args:
            labels: int64 (n,), on the CPU, as a GPU would be waited for; None if unknown.
            source: name of the data, for the error.

        Raises:
            ValueError: a label is `num_classes` or above.
        """
        needed = 0 if labels is None or not len(labels) else int(labels.max()) + 1
        if needed > self.num_classes:
            raise ValueError(
                f"{source} has labels up to {needed - 1}, {needed} classes; the network has "
                f"{self.num_classes}: give --num-classes {needed}, or leave it out"
            )


def cut_held_out(
    labels: Tensor, per_class: float, seed: int, names: Sequence[str] = ()
) -> tuple[Tensor, Tensor]:
    """Divide the positions of images into those to train on and those to hold out, both sorted.

    Args:
        labels: int64 (n,).
        per_class: images of each class to hold out; below 1, the share of each class, where a class
            of one image keeps it for training.
        seed: decides which.
        names: name of each class, if known, for the error.

    Raises:
        ValueError: a class has no image beyond those to hold out.
    """
    rng = np.random.default_rng(seed)
    is_held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist() if per_class else ():
        positions = np.flatnonzero(labels.numpy() == label)
        size = len(positions)
        count = int(per_class) if per_class >= 1 else min(size - 1, max(1, int(per_class * size)))
        if size <= count:
            raise ValueError(
                f"class {names[label] if names else label} has {size} images; with "
                f"held_out_per_class={per_class} none is left to train on: hold out fewer"
            )
        is_held_out[rng.choice(positions, count, replace=False)] = True
    return (~is_held_out).nonzero().squeeze(1), is_held_out.nonzero().squeeze(1)


@lru_cache(maxsize=2)  # every step of an epoch needs the same order
def epoch_order(size: int, seed: int, epoch: int, repeats: int = 1) -> Tensor:
    """Return the order of an epoch: positions 0..size-1, following from (seed, epoch).

    With repeats, each position comes that many times in a row, and as many positions are left out
    (repeated augmentation, arXiv 1902.05509). Parts of a batch take every P-th position, so copies
    go to different parts.
    """
    number = mixed_seed(seed, epoch, "order")
    if repeats == 1:
        return torch.randperm(size, generator=torch.Generator().manual_seed(number))
    sampler = RepeatAugSampler(
        range(size), num_replicas=1, rank=0, num_repeats=repeats, selected_round=0
    )
    sampler.set_epoch(number)  # the only seed of its permutation
    return torch.tensor(list(sampler))


def mixed_seed(seed: int, number: int, purpose: str) -> int:
    """Make a generator's seed from a run's seed, a step or epoch, and what it is for."""
    words = (seed, number, zlib.crc32(purpose.encode()))
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1


def seed_all(seed: int) -> None:
    """Seed every generator that timm's transforms and mixtures draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
