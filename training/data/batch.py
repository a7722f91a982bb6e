"""Where batches come from: CIFAR-10 in memory here, timm's data sets in `indexed.py`.

A source has training images and held-out images, and knows nothing of the test split: the final
evaluation opens that by itself. What a batch holds follows from (seed, step, part), whatever the
number of processes that decode it.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor

from training.run.schedule import Schedule

EVAL_BATCH = 100  # nano on 2 cores: 250 take a quarter longer a image, 20 a tenth


@dataclass(frozen=True, slots=True)
class Batch:
    """A part of a batch, on the device.

    Args:
        x: float32 (n, 3, height, width), normalised.
        labels: int64 (n,); below 0 for a held-out image that could not be read.
        broken: images that could not be read; others stand in their places when training.
    """

    x: Tensor
    labels: Tensor
    broken: int = 0


class DataSource(Protocol):
    """Training and held-out images."""

    num_train: int
    """Training images, without the held-out ones."""
    num_held_out: int
    """Images that `held_out` yields in all processes; 0 where only reading them tells."""
    held_out_list: list[int]
    """Held-out positions in the training set; empty where they are a split of their own."""

    def train(self, schedule: Schedule, first: int, end: int) -> Generator[Batch, None, None]:
        """Yield this process's parts of the batches of steps first..end-1, in order."""
        ...

    def held_out(self, img_size: int) -> Iterator[Batch]:
        """Yield this process's share of the held-out images, unchanged but for their size."""
        ...


def require_classes(labels: Tensor, num_classes: int, source: str) -> None:
    """Check that the network has an output for each label; labels below 0 are of no image.

    Args:
        labels: int64 (n,), not on a GPU, which would be waited for.
        num_classes: of the network.
        source: name of the data, for the error.

    Raises:
        ValueError: a label is beyond the classes.
    """
    needed = int(labels.max()) + 1 if len(labels) else 0
    if needed > num_classes:
        raise ValueError(
            f"{source} has labels up to {needed - 1}, {needed} classes; the network has "
            f"{num_classes}: give --num-classes {needed}, or a space with as many"
        )


def held_out_indices(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Draw `per_class` positions of each class, sorted; the same seed draws the same ones.

    Raises:
        ValueError: a class has no image beyond those to hold out.
    """
    if not per_class:
        return torch.empty(0, dtype=torch.long)
    rng = np.random.default_rng(seed)
    drawn = []
    for label in range(int(labels.max()) + 1):
        positions = np.flatnonzero(labels.numpy() == label)
        if 0 < len(positions) <= per_class:
            raise ValueError(
                f"class {label} has {len(positions)} images; with held_out_per_class={per_class} "
                "none is left to train on: hold out fewer"
            )
        if len(positions):
            drawn.append(rng.choice(positions, per_class, replace=False))
    return torch.from_numpy(np.sort(np.concatenate(drawn)))


@lru_cache(maxsize=2)  # every step of an epoch asks for it
def epoch_order(size: int, seed: int, epoch: int, repeats: int = 1) -> Tensor:
    """Return the order of an epoch: positions 0..size-1, following from (seed, epoch).

    With repeats, each position comes so many times in a row, and as many positions are left out
    (repeated augmentation, arXiv 1902.05509). Parts of a batch take every P-th position, so copies
    go to different ones.
    """
    number = mixed_seed(seed, epoch, "order")
    if repeats == 1:
        return torch.randperm(size, generator=torch.Generator().manual_seed(number))
    sampler = RepeatAugSampler(
        range(size), num_replicas=1, rank=0, num_repeats=repeats, selected_round=0
    )
    sampler.set_epoch(number)  # it seeds its permutation by nothing else
    return torch.tensor(list(sampler))


def mixed_seed(seed: int, number: int, purpose: str) -> int:
    """Make a generator's seed from a run's seed, a step or epoch, and what it is for."""
    words = (seed, number, zlib.crc32(purpose.encode()))
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def seed_all(seed: int) -> None:
    """Seed every generator that timm's transforms and mixtures draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
