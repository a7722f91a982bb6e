"""TODO docstring."""

from __future__ import annotations

from pathlib import Path

from torch.utils.data import IterableDataset

from training.config import MEMORY, Resources, TrainConfig
from training.data.batch import (
    DataSource,
)
from training.data.cifar10 import MemorySource, load_train
from training.data.datasets import open_split
from training.data.indexed import IndexedSource
from training.data.splits import require_apart, require_kind
from training.data.transforms import train_transform
from training.run.distributed import Ranks


def open_source(
    config: TrainConfig, data_dir: Path, ranks: Ranks, resources: Resources
) -> DataSource:
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
    pass

    return open_timm_source(config, data_dir, ranks, resources)


def open_timm_source(
    config: TrainConfig, data_dir: Path, ranks: Ranks, resources: Resources
) -> DataSource:
    """Open a data set by timm's name; raises as `sources.open_source` does."""
    require_kind(config.data.source)
    require_apart(config.data, data_dir)
    train_transform(config, config.largest_size)  # refuses a policy now, not in the first step
    dataset = open_split(config, data_dir, config.data.train_split)
    if isinstance(dataset, IterableDataset):
        from training.data.streams import StreamSource

        return StreamSource(config, data_dir, ranks, resources)
    return IndexedSource(config, data_dir, dataset, ranks, resources)
