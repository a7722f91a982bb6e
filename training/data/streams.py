"""Batches from streams: WebDataset shards, and timm's readers of Hugging Face's and TensorFlow's.

A stream has no positions: its order is the reader's own, shuffled by (seed, epoch). So a resumed
run starts its epoch again and is not bit-identical, and held-out images must be a named split. The
reader divides the stream among processes and workers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch.utils.data import IterableDataset

from training.data.batch import EVAL_BATCH, UNREADABLE, Batch, Batching, DataError
from training.data.datasets import BROKEN, Sample, decode, load
from training.data.transforms import Transform, eval_transform, train_transform
from training.run.schedule import Schedule
from training.settings.config import AugmentConfig, DataConfig

_REPAIR = "the data set seems damaged: repair it, or give another data.source"


class Reader(Protocol):
    """Yields (image, label): an image encoded or as Pillow has it."""

    num_samples: int
    """Number of images, over all processes; 0 if unknown."""

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """Yield a worker's share once."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Draw another order."""
        ...


class StreamSource:
    """Training and held-out images of two readers.

    Args:
        train_reader: of the training split.
        held_out_reader: of the held-out split, if there is one.
        class_names: name of each class, if known.
        data: how images are resized and normalised.
        augment: how training images are changed.
        batching: how batches are formed.
    """

    held_out_list: list[int] = []  # noqa: RUF012 - never changed: a stream has no positions
    num_held_out = 0  # only reading shows it

    def __init__(
        self,
        train_reader: Reader,
        held_out_reader: Reader | None,
        class_names: tuple[str, ...],
        data: DataConfig,
        augment: AugmentConfig,
        batching: Batching,
    ) -> None:
        self.class_names, self.num_classes = class_names, batching.num_classes
        self.num_train = train_reader.num_samples
        self._train, self._held_out = train_reader, held_out_reader
        self._data, self._augment, self._batching = data, augment, batching

    def train(self, schedule: Schedule, first: int, end: int) -> Generator[Batch, None, None]:
        """Yield this process's parts of the batches of steps first..end-1, in the stream's order.

        Raises:
            DataError: no image can be read, or a label is missing or unknown.
            ValueError: the stream is shorter than a batch.
        """
        step, accumulate = first, self._batching.ranks.accumulate
        while step < end:
            plan = schedule.plan(step)
            self._train.set_epoch(plan.epoch)
            steps = min(end - step, schedule.steps_per_epoch - plan.batch_in_epoch)
            transform = train_transform(self._data, self._augment, plan.img_size)
            yield from self._repeat(transform, steps * accumulate)
            step += steps

    def held_out(self, img_size: int) -> Iterator[Batch]:
        """Yield this process's share of the held-out images, only resized and normalised."""
        if self._held_out is not None:
            blank = partial(torch.zeros, 3, img_size, img_size)
            images = CountedStream(self._held_out, eval_transform(self._data, img_size), blank)
            yield from self._load(images, EVAL_BATCH)

    def _repeat(self, transform: Transform, count: int) -> Iterator[Batch]:
        """Yield `count` batches, starting again if the stream ends before."""
        size, done = self._batching.size // self._batching.ranks.parts, 0
        while done < count:
            before = done
            for batch in self._load(CountedStream(self._train, transform), size):
                if len(batch.labels) < size:
                    continue  # a worker's last images
                yield batch
                done += 1
                if done == count:
                    return
            if done == before:
                raise ValueError(
                    f"{self._data.source} has no batch of {size} images for this process; expected "
                    "at least a shard for each process and worker, or a smaller batch"
                )

    def _load(self, images: CountedStream, size: int) -> Iterator[Batch]:
        return load(images, self._batching, self._data.source, batch_size=size)


class CountedStream(IterableDataset[Sample]):
    """A reader's images, transformed, with the broken ones counted.

    Args:
        reader: where images come from.
        transform: what happens to an image.
        blank: in evaluation, makes the image that takes a broken one's place. None: broken images
            are left out and counted with the next one.
    """

    def __init__(
        self,
        reader: Reader,
        transform: Transform,
        blank: Callable[[], torch.Tensor] | None = None,
    ) -> None:
        self._reader, self._transform, self._blank = reader, transform, blank

    def __iter__(self) -> Iterator[Sample]:
        """Yield a worker's images.

        Raises:
            DataError: the reader fails, or a worker can read no image at all.
        """
        broken, is_empty, reason = 0, True, ""
        for item, label in self._read():
            try:
                image = decode(item)
            except BROKEN as error:
                broken, reason = broken + 1, str(error)
                if self._blank is not None:
                    yield self._blank(), UNREADABLE, 1
                continue
            yield self._transform(image), int(label), 0 if self._blank else broken
            broken, is_empty = 0, False
        if is_empty and reason and self._blank is None:
            raise DataError(f"no image of a worker could be read, the last: {reason}; {_REPAIR}")

    def _read(self) -> Iterator[tuple[Any, int]]:
        try:
            yield from self._reader
        except DataError:
            raise
        except (*BROKEN, RuntimeError) as error:
            reason = str(error) or type(error).__name__
            raise DataError(f"reading the stream failed: {reason}; {_REPAIR}") from None
