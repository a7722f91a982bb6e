"""Batches from streams: WebDataset shards and Hugging Face's iterable data sets, by timm.

A stream cannot be indexed: its order is the reader's own, shuffled by (seed, epoch); a run that
goes on starts the epoch at hand anew, so that it is not bit-identical; and the held-out split has
to be named. timm divides the shards among processes.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from timm.data import IterableImageDataset
from torch.utils.data import IterableDataset

from training.config import Resources, TrainConfig
from training.data.batch import EVAL_BATCH, Batch
from training.data.datasets import BROKEN, Sample, damaged, load, open_split
from training.data.splits import require_split
from training.data.transforms import Transform, eval_transform, train_transform
from training.run.distributed import Ranks
from training.run.schedule import Schedule

_MEND = "the data set seems damaged: mend it, or take another data.source"


class StreamSource:
    """A data set that comes as a stream, shuffled by its own reader.

    Args:
        config: what to train; `data.held_out_split` must name a split, or nothing be held out.
        data_dir: root of the data.
        ranks: this process among all.
        resources: for the number of workers.

    Raises:
        FileNotFoundError: a shard is not there.
        ValueError: the config asks for what a stream cannot do.
    """

    def __init__(
        self, config: TrainConfig, data_dir: Path, ranks: Ranks, resources: Resources
    ) -> None:
        if config.held_out_per_class and not config.data.held_out_split:
            raise ValueError(
                f"{config.data.source} is a stream, nothing can be cut from it; expected "
                "data.held_out_split, or held_out_per_class 0"
            )
        if config.augment.repeats > 1:
            raise ValueError(
                f"augment.repeats is {config.augment.repeats}; {config.data.source} is a stream: "
                "expected 1"
            )
        self._config, self._ranks, self._data_dir = config, ranks, data_dir
        self._workers = resources.workers
        if config.data.held_out_split:  # not after an epoch
            require_split(config.data, data_dir, config.data.held_out_split)
        self._dataset = self._open(config.data.train_split, self._part_size)
        # Of all processes: the length is one's share, rounded up.
        self.num_train: int = self._dataset.reader.num_samples
        self.num_held_out = 0  # broken images are left out, and shards may come twice
        self.held_out_list: list[int] = []

    @property
    def _part_size(self) -> int:
        return self._config.batch_size // self._ranks.parts

    def train(self, schedule: Schedule, first: int, end: int) -> Generator[Batch, None, None]:
        """Yield this process's parts of the batches of steps first..end-1, in the stream's order.

        Raises:
            ValueError: the stream has no image, or none that can be read.
        """
        step, dataset = first, self._dataset
        while step < end:
            plan = schedule.plan(step)
            dataset.set_epoch(plan.epoch)
            left = min(end - step, schedule.steps_per_epoch - plan.batch_in_epoch)
            wanted = left * self._ranks.accumulate
            parts = self._endless(dataset, plan.img_size, wanted)
            yield from parts
            step += left

    def held_out(self, img_size: int) -> Iterator[Batch]:
        """Yield this process's share of the held-out images; the reader divides the shards."""
        if not self._config.data.held_out_split:
            return
        dataset = self._open(self._config.data.held_out_split, EVAL_BATCH, is_training=False)
        transform = eval_transform(self._config, img_size)
        yield from self._load(CountedStream(dataset, transform, img_size), EVAL_BATCH)

    def _open(self, split: str, batch_size: int, is_training: bool = True) -> IterableImageDataset:
        dataset: Any = open_split(self._config, self._data_dir, split, batch_size, is_training)
        # What timm takes from the process group; where every process reads all, there is no share.
        dataset.reader.dist_rank = self._ranks.rank
        dataset.reader.dist_num_replicas = self._ranks.world
        dataset.set_loader_cfg(num_workers=self._workers)
        return dataset

    def _endless(
        self, dataset: IterableImageDataset, img_size: int, wanted: int
    ) -> Iterator[Batch]:
        """Yield so many batches, beginning anew where shards end early."""
        transform, given = train_transform(self._config, img_size), 0
        while given < wanted:
            before = given
            images = CountedStream(dataset, transform, img_size, is_training=True)
            for batch in self._load(images, self._part_size):
                if len(batch.labels) < self._part_size:
                    continue  # what is left over
                yield batch
                given += 1
                if given == wanted:
                    return
            if given == before:
                raise ValueError(
                    f"{self._config.data.source} gave no batch of {self._part_size} images; "
                    "expected shards with more, or a smaller batch"
                )

    def _load(self, images: CountedStream, batch_size: int) -> Iterator[Batch]:
        return load(images, self._config, self._ranks, self._workers, batch_size=batch_size)


class CountedStream(IterableDataset[Sample]):
    """A stream's images, with what could not be read counted.

    Args:
        dataset: what to read from.
        transform: what happens to a image.
        img_size: side of what it gives, in pixels.
        is_training: the image after a broken one carries its count. In evaluation each has a
            place of its own, with label -1.
    """

    def __init__(
        self,
        dataset: IterableImageDataset,
        transform: Transform,
        img_size: int,
        is_training: bool = False,
    ) -> None:
        self._reader: Any = dataset.reader
        self._transform = transform
        self._img_size = img_size
        self._is_training = is_training

    def __iter__(self) -> Iterator[Sample]:
        """Yield images; where a worker can read none, or not go on, the last one says why."""
        images, skipped, given = iter(self._reader), _Skipped(), 0
        while True:
            try:
                with skipped:
                    found = next(images, None)
            except (*BROKEN, RuntimeError) as error:  # of readers that skip nothing
                reason = f"{error or type(error).__name__}"
                yield damaged(f"the stream cannot be read on: {reason}; {_MEND}", self._img_size)
                return
            broken, skipped.count = skipped.count, 0
            if not self._is_training:
                blank = torch.zeros(3, self._img_size, self._img_size)
                yield from [(blank, -1, 1, "")] * broken
                broken = 0
            if found is None:
                break
            given += 1
            yield self._transform(found[0]), int(found[1]), broken, ""
        if self._is_training and skipped.reason and not given:
            reason = f"no image of a worker's shards could be read, the last: {skipped.reason}"
            yield damaged(f"{reason}; {_MEND}", self._img_size)


class _Skipped(logging.Handler):
    """Counts what timm's WebDataset reader leaves out: it tells by a warning alone."""

    _log = logging.getLogger("timm.data.readers.reader_wds")

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count, self.reason = 0, ""

    def emit(self, record: logging.LogRecord) -> None:
        self.count, self.reason = self.count + 1, record.getMessage()

    def __enter__(self) -> None:
        self._log.addHandler(self)

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self)
