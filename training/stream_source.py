"""Batches from streams: WebDataset shards and Hugging Face's iterable data sets, by timm.

A stream cannot be indexed: its order is the reader's own, shuffled by (seed, epoch); a run that
goes on starts the epoch at hand anew, so that it is not bit-identical; and the held-out split has
to be named. timm divides the shards among processes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from timm.data import create_loader
from torch.utils.data import Dataset

from training.config import Resources, TrainConfig
from training.distributed import Ranks
from training.schedule import Schedule
from training.sources import EVAL_BATCH, Batch
from training.timm_data import Transform, eval_transform, open_split, train_transform


class StreamSource:
    """A data set that comes as a stream, shuffled by its own reader.

    Args:
        config: what to train; `data.held_out_split` must name a split, or nothing be held out.
        data_dir: root of the data.
        ranks: this process among all.
        resources: for the number of workers.

    Raises:
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
        self._dataset = open_split(config, data_dir, config.data.train_split, self._part_size)
        self.num_train = len(self._dataset)  # type: ignore[arg-type]
        self.held_out_list: list[int] = []

    @property
    def _part_size(self) -> int:
        return self._config.batch_size // self._ranks.parts

    def train(self, schedule: Schedule, first: int, end: int) -> Generator[Batch, None, None]:
        """Yield this process's parts of the batches of steps first..end-1, in the stream's order.

        Raises:
            ValueError: the stream has no picture.
        """
        step, dataset = first, self._dataset
        while step < end:
            plan = schedule.plan(step)
            dataset.set_epoch(plan.epoch)  # type: ignore[attr-defined]
            left = min(end - step, schedule.steps_per_epoch - plan.batch_in_epoch)
            wanted = left * self._ranks.accumulate
            parts = self._endless(dataset, plan.img_size, wanted)
            yield from parts
            step += left

    def held_out(self, img_size: int) -> Iterator[Batch]:
        """Yield this process's share of the held-out pictures; the reader divides the shards."""
        if not self._config.data.held_out_split:
            return
        dataset = open_split(
            self._config, self._data_dir, self._config.data.held_out_split, EVAL_BATCH, False
        )
        yield from self._load(dataset, img_size, EVAL_BATCH, eval_transform(self._config, img_size))

    def _endless(self, dataset: Dataset[Any], img_size: int, wanted: int) -> Iterator[Batch]:
        """Yield so many batches, beginning anew where shards end early."""
        given = 0
        while given < wanted:
            before = given
            transform = train_transform(self._config, img_size)
            for batch in self._load(dataset, img_size, self._part_size, transform, whole=True):
                yield batch
                given += 1
                if given == wanted:
                    return
            if given == before:
                raise ValueError(
                    f"{self._config.data.source} gave no batch of {self._part_size} pictures; "
                    "expected shards with more, or a smaller batch"
                )

    def _load(
        self,
        dataset: Dataset[Any],
        img_size: int,
        batch_size: int,
        transform: Transform,
        whole: bool = False,
    ) -> Iterator[Batch]:
        device = self._ranks.device
        loader = create_loader(
            dataset,
            img_size,
            batch_size,
            is_training=whole,  # which drops what is left over
            use_prefetcher=False,
            num_workers=self._workers,
            persistent_workers=False,
            device=device,
        )
        dataset.transform = transform  # type: ignore[attr-defined]  # in place of the loader's
        for x, labels in loader:
            yield Batch(x.to(device), torch.as_tensor(labels).to(device))
