"""The data that a config names: where training, search and the final evaluation get their images.

The only place in this folder that reads a whole `TrainConfig`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from training.config import MEMORY, Resources, TrainConfig, space_of
from training.data.batch import Batching, DataSource, cut_held_out
from training.data.cifar10 import MAX_EVALUATED, Images, MemorySource, load_test, load_train
from training.data.datasets import class_names_of, labels_of, open_dataset
from training.data.indexed import IndexedSource, Part
from training.data.splits import is_folder, is_shards, require_apart, require_kind
from training.data.streams import StreamSource
from training.data.transforms import train_transform
from training.run.distributed import SINGLE, Ranks


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
    if data.source == MEMORY:
        train, held_out = load_train(
            data_dir, config.held_out_per_class, config.seed, data.download
        )
        few = held_out.select(torch.arange(min(len(held_out), MAX_EVALUATED)))
        few = replace(few, positions=held_out.positions)  # none of them is trained on
        return _in_memory(config, train, few, ranks)
    require_kind(data.source)
    require_apart(data, data_dir)
    train_transform(data, config.augment, config.largest_size)  # refuses a policy before training
    return _open(config, data.held_out_split, data_dir, ranks, resources.workers)


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
    if config.data.source == MEMORY:
        test = load_test(data_dir)
        return _in_memory(config, test.select(torch.arange(0)), test, ranks)
    return _open(config, config.data.test_split, data_dir, ranks, workers)


def _open(
    config: TrainConfig, held_out_split: str, data_dir: Path, ranks: Ranks, workers: int
) -> DataSource:
    if is_shards(config.data.source):
        return _open_shards(config, held_out_split, data_dir, ranks, workers)
    train = open_dataset(config.data, data_dir, config.data.train_split, config.seed)
    open_other = _open_stream if isinstance(train, IterableDataset) else _open_indexed
    return open_other(config, train, held_out_split, data_dir, ranks, workers)


def _open_indexed(
    config: TrainConfig,
    train: Dataset[Any],
    held_out_split: str,
    data_dir: Path,
    ranks: Ranks,
    workers: int,
) -> IndexedSource:
    data, names, labels = config.data, class_names_of(train), labels_of(train)
    if is_folder(data.source) and len(names) == 1:
        raise ValueError(
            f"{data_dir}, split {data.train_split}, has one class folder, {names[0]!r}; expected "
            "at least two, each with the images of a class"
        )
    found = len(names) or (0 if labels is None else int(labels.max()) + 1)
    batching = _batching(config, ranks, workers, found)
    _require_classes(labels, batching, data.source)
    if held_out_split:
        known = getattr(train, "class_to_idx", None)
        held_out = open_dataset(data, data_dir, held_out_split, config.seed, known)
        _require_classes(labels_of(held_out), batching, data.source)
        parts = (_whole(train), _whole(held_out))
    elif labels is not None:
        cut = cut_held_out(labels, config.held_out_per_class, config.seed, names)
        parts = (Part(train, cut[0]), Part(train, cut[1]))
    elif config.held_out_per_class:
        raise ValueError(
            f"{data.source} does not list its labels, so no held-out images can be cut from it; "
            "expected data.held_out_split, or held_out_per_class 0"
        )
    else:
        parts = (_whole(train), Part(train, torch.arange(0)))
    return IndexedSource(*parts, names, data, config.augment, batching)


def _open_stream(
    config: TrainConfig,
    train: Any,  # timm's, of a reader without a type
    held_out_split: str,
    data_dir: Path,
    ranks: Ranks,
    workers: int,
) -> StreamSource:
    _require_streamable(config, held_out_split)
    datasets = [train]
    if held_out_split:
        datasets.append(open_dataset(config.data, data_dir, held_out_split, config.seed))
    for dataset in datasets:
        # As timm takes them from the process group; a search reads everything in every process.
        dataset.reader.dist_rank, dataset.reader.dist_num_replicas = ranks.rank, ranks.world
        dataset.set_loader_cfg(num_workers=workers)
    names = class_names_of(train)
    batching = _batching(config, ranks, workers, len(names))
    held_out = datasets[1].reader if held_out_split else None
    return StreamSource(train.reader, held_out, names, config.data, config.augment, batching)


def _open_shards(
    config: TrainConfig, held_out_split: str, data_dir: Path, ranks: Ranks, workers: int
) -> StreamSource:
    from training.data.shards import ShardReader, find_classes, shards_of  # needs webdataset

    _require_streamable(config, held_out_split)
    data, share = config.data, (ranks.rank, ranks.world)
    shards, count = shards_of(data_dir, data.train_split)
    if not count:
        raise ValueError(
            f"data.train_split {data.train_split!r} does not give its number of images; expected "
            "SHARDS|NUMBER, or an info.json beside the shards"
        )
    class_to_idx, found = find_classes(shards, data.label_key, bool(config.num_classes))
    train = ShardReader(shards, count, data, class_to_idx, config.seed, share)
    held_out = None
    if held_out_split:
        others, number = shards_of(data_dir, held_out_split)
        held_out = ShardReader(others, number, data, class_to_idx, None, share)
    batching = _batching(config, ranks, workers, found)
    return StreamSource(train, held_out, tuple(class_to_idx), data, config.augment, batching)


def _require_streamable(config: TrainConfig, held_out_split: str) -> None:
    source = config.data.source
    if config.held_out_per_class and not held_out_split:
        raise ValueError(
            f"{source} is a stream, nothing can be cut from it; expected data.held_out_split, or "
            "held_out_per_class 0"
        )
    if config.augment.repeats > 1:
        raise ValueError(
            f"augment.repeats is {config.augment.repeats}; {source} is a stream: expected 1"
        )


def _in_memory(config: TrainConfig, train: Images, held_out: Images, ranks: Ranks) -> MemorySource:
    batching = _batching(config, ranks, 0, len(train.class_names))
    return MemorySource(train, held_out, config.augment, batching)


def _batching(config: TrainConfig, ranks: Ranks, workers: int, found: int) -> Batching:
    """Put together how batches are formed; `found` is the number of classes in the data, or 0."""
    num_classes = config.num_classes or found or space_of(config).num_classes
    return Batching(
        config.batch_size, config.seed, config.augment.repeats, num_classes, ranks, workers
    )


def _whole(dataset: Any) -> Part:
    return Part(dataset, torch.arange(len(dataset)))


def _require_classes(labels: Tensor | None, batching: Batching, source: str) -> None:
    if labels is not None:
        batching.require_classes(labels, source)
