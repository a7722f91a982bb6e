"""The data that a config names: where training, search and the final evaluation get their images.

The only place in this folder that reads a whole `TrainConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset

from training.data.batch import Batching, DataSource, cut_held_out
from training.data.cifar10 import MAX_EVALUATED, Images, MemorySource, load_test, load_train
from training.data.datasets import class_names_of, labels_of, open_dataset
from training.data.indexed import IndexedSource, Part
from training.data.splits import is_folder, is_shards, require_apart, require_kind
from training.data.streams import StreamSource
from training.data.transforms import train_transform
from training.run.distributed import SINGLE, Ranks
from training.settings.config import MEMORY, Resources, TrainConfig, space_of


def open_source(
    config: TrainConfig, data_dir: Path, ranks: Ranks, resources: Resources
) -> DataSource:
    """Open the training and held-out images that a config names.

    Args:
        config: its data, augmentation, stages, batch size, seed and number of classes.
        data_dir: root of the data.
        ranks: this process among all.
        resources: for the number of workers.

    Raises:
        FileNotFoundError: the data is missing.
        ValueError: the source is unknown, or cannot do what the config asks for.
    """
    data = config.data
    opening = _Opening(config, data_dir, data.held_out_split, ranks, resources.workers)
    if data.source == MEMORY:
        if data.crop_pct != 1:
            raise ValueError(
                f"data.crop_pct is {data.crop_pct}; the source {MEMORY!r} does not crop in "
                "evaluation: use the source torch/cifar10"
            )
        train, held_out = load_train(
            data_dir, config.held_out_per_class, config.seed, data.download
        )
        few = held_out.select(torch.arange(min(len(held_out), MAX_EVALUATED)))
        # All positions are listed, as none of them is trained on.
        return opening.in_memory(train, replace(few, positions=held_out.positions))
    require_kind(data.source)
    require_apart(data, data_dir)
    train_transform(data, config.augment, config.largest_size)  # refuses a policy before training
    return opening.by_name()


def settle_classes(config: TrainConfig, data_dir: Path) -> TrainConfig:
    """Return the config with the number of classes that its data has, before anything is trained.

    Raises:
        FileNotFoundError, ValueError: as `open_source`.
    """
    if config.num_classes or config.data.source == MEMORY:
        return config
    return with_classes_of(config, open_source(config, data_dir, SINGLE, Resources(workers=0)))


def with_classes_of(config: TrainConfig, source: DataSource) -> TrainConfig:
    """Return the config with the number of classes of its data, if its space has another one."""
    if source.num_classes == space_of(config).num_classes:
        return config  # as runs of earlier versions were written
    return replace(config, num_classes=source.num_classes)


def open_test(
    config: TrainConfig, data_dir: Path, ranks: Ranks = SINGLE, workers: int = 2
) -> DataSource:
    """Open the test split in the held-out images' place. Only the final evaluation may call this.

    Args:
        config: names the data.
        data_dir: root of the data.
        ranks: this process among all; its share is read.
        workers: processes that decode.

    Raises:
        FileNotFoundError: the test split is missing.
    """
    opening = _Opening(config, data_dir, config.data.test_split, ranks, workers)
    if config.data.source == MEMORY:
        test = load_test(data_dir)
        return opening.in_memory(test.select(torch.arange(0)), test)
    return opening.by_name()


@dataclass(frozen=True, slots=True)
class _Opening:
    """The training split and, beside it, another one: opened by the kind of their source."""

    config: TrainConfig
    data_dir: Path
    held_out_split: str  # empty: held-out images are cut from the training split
    ranks: Ranks
    workers: int

    def in_memory(self, train: Images, held_out: Images) -> MemorySource:
        batching = self._batching(len(train.class_names))
        return MemorySource(train, held_out, self.config.augment, batching)

    def by_name(self) -> DataSource:
        if is_shards(self.config.data.source):
            return self._shards()
        train = self._open(self.config.data.train_split)
        return self._stream(train) if isinstance(train, IterableDataset) else self._indexed(train)

    def _indexed(self, train: Any) -> IndexedSource:
        config, data = self.config, self.config.data
        names, labels = class_names_of(train), labels_of(train)
        if is_folder(data.source) and len(names) == 1:
            raise ValueError(
                f"{self.data_dir}, split {data.train_split}, has one class folder, {names[0]!r}; "
                "expected at least two, each with the images of a class"
            )
        batching = self._batching(len(names) or (0 if labels is None else int(labels.max()) + 1))
        batching.require_classes(labels, data.source)
        if self.held_out_split:
            held_out = self._open(self.held_out_split, getattr(train, "class_to_idx", None))
            if class_names_of(held_out) != names:
                raise ValueError(
                    f"{data.source}: split {self.held_out_split} has other classes than "
                    f"{data.train_split}, or in another order"
                )
            batching.require_classes(labels_of(held_out), data.source)
            parts = (Part.whole(train), Part.whole(held_out))
        elif labels is not None:
            kept, cut = cut_held_out(labels, config.held_out_per_class, config.seed, names)
            parts = (Part(train, kept), Part(train, cut))
        elif config.held_out_per_class:
            raise ValueError(
                f"{data.source} does not list its labels, so no held-out images can be cut from "
                "it; expected data.held_out_split, or held_out_per_class 0"
            )
        else:
            parts = (Part.whole(train), Part(train, torch.arange(0)))
        return IndexedSource(*parts, names, data, config.augment, batching)

    def _stream(self, train: Any) -> StreamSource:
        self._require_streamable()
        config, names = self.config, class_names_of(train)
        held_out = self._open(self.held_out_split) if self.held_out_split else None
        for dataset in (train, held_out) if held_out else (train,):
            # timm takes them from the process group; a search reads all images in every process.
            dataset.reader.dist_rank = self.ranks.rank
            dataset.reader.dist_num_replicas = self.ranks.world
            dataset.set_loader_cfg(num_workers=self.workers)
        readers = train.reader, held_out and held_out.reader
        batching = self._batching(len(names))
        return StreamSource(*readers, names, config.data, config.augment, batching)

    def _shards(self) -> StreamSource:
        from training.data.shards import ShardReader, find_classes, shards_of  # needs webdataset

        self._require_streamable()
        config, data, share = self.config, self.config.data, (self.ranks.rank, self.ranks.world)
        shards, count = shards_of(self.data_dir, data.train_split)
        if not count:
            raise ValueError(
                f"data.train_split {data.train_split!r} does not give its number of images; "
                "expected SHARDS|NUMBER, or an info.json beside the shards"
            )
        classes, found = find_classes(shards, data.label_key, bool(config.num_classes))
        train = ShardReader(shards, count, data, classes, config.seed, share)
        held_out = None
        if self.held_out_split:
            others = shards_of(self.data_dir, self.held_out_split)
            held_out = ShardReader(*others, data, classes, None, share)
        batching = self._batching(found or len(classes))
        return StreamSource(train, held_out, tuple(classes), data, config.augment, batching)

    def _open(self, split: str, class_to_idx: Mapping[str, int] | None = None) -> Any:
        data, seed = self.config.data, self.config.seed
        return open_dataset(data, self.data_dir, split, seed, class_to_idx)

    def _require_streamable(self) -> None:
        source, repeats = self.config.data.source, self.config.augment.repeats
        if self.config.held_out_per_class and not self.held_out_split:
            raise ValueError(
                f"{source} is a stream, nothing can be cut from it; expected data.held_out_split, "
                "or held_out_per_class 0"
            )
        if repeats > 1:
            raise ValueError(f"augment.repeats is {repeats}; {source} is a stream: expected 1")

    def _batching(self, found: int) -> Batching:
        """Put together how batches are formed; `found`: number of classes in the data, or 0."""
        config = self.config
        num_classes = config.num_classes or found or space_of(config).num_classes
        return Batching(
            config.batch_size,
            config.seed,
            config.augment.repeats,
            num_classes,
            self.ranks,
            self.workers,
        )
