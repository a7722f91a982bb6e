"""What is searched: a trained supernet's weights, its space, and held-out pictures to score on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from autoformer_zoo.checkpoint import SupernetWeights, load_supernet
from autoformer_zoo.space import SearchSpace, SubnetConfig
from training.config import PRESETS, Resources
from training.distributed import SINGLE, device_of
from training.evaluate import LabelledBatch, inherited_accuracy, load_averaged
from training.networks import space_of
from training.run_directory import read_config
from training.sources import Batch, Source, open_source

MOST_KEPT_BYTES = 8 << 30  # of held-out pictures; more are read again for every candidate


@dataclass(frozen=True, slots=True)
class Subject:
    """What is searched, and on which pictures.

    Args:
        supernet: trained weights.
        space: subnets to choose from.
        batches: held-out pictures, ready for the network; gone through for every candidate.
        identity: of weights and pictures, JSON-able: a search goes on only where it is the same.
        device: where candidates run.
        img_size: side of the pictures, where it is not the supernet's.
        precision: candidates run in, whatever the weights' type.
    """

    supernet: SupernetWeights
    space: SearchSpace
    batches: Iterable[LabelledBatch]
    identity: Mapping[str, Any]
    device: str = "cpu"
    img_size: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"

    @property
    def scored_space(self) -> SearchSpace:
        """The space, at the size of the pictures: what costs are counted at."""
        return replace(self.space, img_size=self.img_size or self.space.img_size)

    def accuracy(self, subnet: SubnetConfig) -> float:
        """Return the held-out accuracy in percent of a subnet with inherited weights."""
        setting = (self.batches, self.device, self.img_size, self.precision)
        return inherited_accuracy(self.supernet, subnet, *setting)


def open_subject(
    data_dir: Path,
    run: Path | None = None,
    supernet: Path | None = None,
    preset: str = "cifar10",
    half: bool = True,
    device: str = "auto",
    pictures: int = 0,
) -> Subject:
    """Open a run of `training.train`, or a supernet file with a preset that says the rest.

    Args:
        data_dir: root of the data.
        run: run directory; or
        supernet: file of a supernet, official, PreNAS or canonical.
        preset: with a file, whose space, data and held-out pictures to take.
        half: round the run's weights to fp16.
        device: where candidates run; auto: CUDA where there is some.
        pictures: held-out pictures to score on, spread evenly over all of them; 0: all.

    Raises:
        ValueError: both or neither of run and supernet is given, `pictures` is below 0, or the
            device cannot be used.
        FileNotFoundError: the run, the file or the data is not there.
        CheckpointError: the weights cannot be read.
    """
    if (run is None) == (supernet is None):
        raise ValueError("give either --run-dir, a training run, or --supernet, a file")
    device = str(device_of(device))
    if run is not None:
        config = read_config(run)
        weights = load_averaged(run, half)
    else:
        assert supernet is not None
        config, weights = PRESETS[preset], load_supernet(supernet)
    alone = replace(config, batch_size=1, augment=replace(config.augment, mixup=0.0, cutmix=0.0))
    # Every process sees all pictures: candidates are shared.
    source = open_source(alone, data_dir, SINGLE, Resources())
    batches, held_out = keep_held_out(source, config.largest_size, pictures)
    identity = {
        "supernet_sha256": hash_tensors(weights.tensors),
        "space": space_of(config).to_dict(),
        "img_size": config.largest_size,
        "source": config.data.source,
        "split": config.data.held_out_split or config.data.train_split,
        **held_out,
    }
    return Subject(weights, space_of(config), batches, identity, device, config.largest_size)


class _HeldOut:
    """Held-out pictures, spread evenly over all of them; read anew by everyone who goes through.

    Args:
        source: where they come from.
        img_size: their side, in pixels.
        share: (n, N) to keep n pictures of every N.
    """

    def __init__(self, source: Source, img_size: int, share: tuple[int, int] = (1, 1)) -> None:
        self._source, self._img_size, self._share = source, img_size, share

    def __iter__(self) -> Iterator[Batch]:
        kept, of = self._share
        first = 0
        for batch in self._source.held_out(self._img_size):
            number = torch.arange(first, first + len(batch.labels))
            chosen = (number + 1) * kept // of > number * kept // of
            first += len(number)
            if chosen.any():
                chosen = chosen.to(batch.labels.device)
                yield Batch(batch.x[chosen], batch.labels[chosen], batch.broken)


def keep_held_out(
    source: Source, img_size: int, pictures: int = 0
) -> tuple[Iterable[LabelledBatch], dict[str, Any]]:
    """Keep held-out pictures in memory, where they fit, and say which they are.

    Args:
        source: where they come from.
        img_size: their side, in pixels.
        pictures: how many, spread evenly: a folder is sorted by class. 0: all.

    Raises:
        ValueError: `pictures` is below 0.
    """
    if pictures < 0:
        raise ValueError(f"pictures is {pictures}; expected 0 for all, or how many")
    total = source.num_held_out or sum(len(each.labels) for each in source.held_out(img_size))
    count = min(pictures, total) or total
    batches: Iterable[Batch] = _HeldOut(source, img_size, (count, total) if total else (1, 1))
    if count * 3 * img_size**2 * 4 <= MOST_KEPT_BYTES:
        batches = list(batches)
    digest = hashlib.sha256(json.dumps(source.held_out_list).encode())
    for batch in batches if isinstance(batches, list) else ():
        digest.update(batch.labels.numpy().tobytes())
    return batches, {"held_out": count, "held_out_of": total, "held_out_sha256": digest.hexdigest()}


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(
            tensors[name].detach().reshape(-1).contiguous().view(torch.uint8).numpy().data
        )
    return digest.hexdigest()
