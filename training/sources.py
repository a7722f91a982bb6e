"""Where batches come from: CIFAR-10 in memory here, timm's data sets in `timm_source.py`.

A source has training pictures and held-out pictures, and knows nothing of the test split: the final
evaluation opens that by itself. What a batch holds follows from (seed, step, part), whatever the
number of processes that decode it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from training.config import MEMORY, Resources, TrainConfig
from training.data import (
    Pictures,
    epoch_order,
    eval_batch,
    load_train,
    mixed_seed,
    seed_all,
    train_batch,
)
from training.distributed import Ranks
from training.networks import space_of
from training.schedule import Schedule, StepPlan

MOST_EVALUATED = 5000  # held-out pictures in memory that are looked at between epochs
EVAL_BATCH = 100  # nano on 2 cores: 250 take a quarter longer a picture, 20 a tenth


@dataclass(frozen=True, slots=True)
class Batch:
    """A part of a batch, on the device.

    Args:
        x: float32 (n, 3, height, width), normalised.
        labels: int64 (n,); below 0 for a held-out picture that could not be read.
        broken: pictures that could not be read; others stand in their places when training.
    """

    x: Tensor
    labels: Tensor
    broken: int = 0


class Source(Protocol):
    """Training and held-out pictures."""

    num_train: int
    """Training pictures, without the held-out ones."""
    num_held_out: int
    """Pictures that `held_out` yields in all processes; 0 where only reading them tells."""
    held_out_list: list[int]
    """Held-out positions in the training set; empty where they are a split of their own."""

    def train(self, schedule: Schedule, first: int, end: int) -> Generator[Batch, None, None]:
        """Yield this process's parts of the batches of steps first..end-1, in order."""
        ...

    def held_out(self, img_size: int) -> Iterator[Batch]:
        """Yield this process's share of the held-out pictures, unchanged but for their size."""
        ...


def open_source(config: TrainConfig, data_dir: Path, ranks: Ranks, resources: Resources) -> Source:
    """Open the training data that a config names.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: the source is unknown, or cannot do what the config asks for.
    """
    if config.data.source == MEMORY:
        train, held_out = load_train(
            data_dir, config.held_out_per_class, config.seed, config.data.download
        )
        return MemorySource(config, train, held_out, ranks)
    from training.timm_source import open_timm_source

    return open_timm_source(config, data_dir, ranks, resources)


def require_classes(labels: Tensor, num_classes: int, source: str) -> None:
    """Check that the network has an output for each label; labels below 0 are of no picture.

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


class MemorySource:
    """Pictures in memory, augmented a batch at a time: shifts and flips.

    Args:
        config: what to train.
        train: pictures to train on.
        held_out: pictures for choosing.
        ranks: this process among all.

    Raises:
        ValueError: there are more classes than the network has.
    """

    def __init__(
        self, config: TrainConfig, train: Pictures, held_out: Pictures, ranks: Ranks
    ) -> None:
        require_classes(train.labels, space_of(config).num_classes, config.data.source)
        self.num_train = len(train)
        self.held_out_list = [] if held_out.positions is None else held_out.positions.tolist()
        self._config = config
        self._train = train.to(ranks.device)
        self._held_out = held_out.select(torch.arange(min(len(held_out), MOST_EVALUATED)))
        self.num_held_out = len(self._held_out)
        self._ranks = ranks

    def train(self, schedule: Schedule, first: int, end: int) -> Generator[Batch, None, None]:
        """Yield this process's parts of the batches of steps first..end-1, in order."""
        config = self._config
        size, parts, repeats = config.batch_size, self._ranks.parts, config.augment.repeats
        for step in range(first, end):
            plan = schedule.plan(step)
            order = epoch_order(self.num_train, config.seed, plan.epoch, repeats)
            batch = order[plan.batch_in_epoch * size : (plan.batch_in_epoch + 1) * size]
            for part in self._ranks.own_parts:
                pictures = self._train.select(batch[part::parts])
                yield Batch(self._augmented(pictures, plan, part), pictures.labels)

    def _augmented(self, pictures: Pictures, plan: StepPlan, part: int) -> Tensor:
        seed, augment = self._config.seed, self._config.augment
        if augment.crop == "none":
            x = eval_batch(pictures, plan.img_size)
        else:
            x = train_batch(pictures, plan.img_size, seed, plan.step, part, self._ranks.parts)
        if augment.erasing:
            seed_all(mixed_seed(seed, plan.step, f"erasing/{part}"))
            x = RandomErasing(augment.erasing, mode="pixel", device=x.device)(x)
        return x

    def held_out(self, img_size: int) -> Iterator[Batch]:
        """Yield this process's share of the held-out pictures, unchanged but for their size."""
        whole = self._held_out.to(self._ranks.device)
        parts = torch.arange(len(whole)).split(EVAL_BATCH)
        for indices in parts[self._ranks.rank :: self._ranks.world]:
            pictures = whole.select(indices)
            yield Batch(eval_batch(pictures, img_size), pictures.labels)
