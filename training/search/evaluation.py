"""Top-1 accuracy of networks on images in memory, and of subnets with inherited weights.

What the search calls for every candidate: the static network, extracted anew, on batches that were
resized and normalised once. Top-5, classes and throughput of finished models are
`benchmarks.accuracy`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from autoformer_zoo.factory import extract_subnet
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.weights.checkpoint import SupernetWeights, load_supernet
from training.config import Resources, space_of
from training.data.batch import Batch, DataSource
from training.data.cifar10 import Images, eval_batch
from training.data.open import open_source
from training.engine.weights import averaged_weights
from training.presets import PRESETS
from training.run.directory import read_config
from training.run.distributed import SINGLE, device_of

BATCH_SIZE = 100  # on 2 cores, nano: 4 % faster than 125, 25 % than 250, and 20 no better


class LabelledBatch(Protocol):
    """Images ready for a network, with labels; `sources.Batch` is one."""

    @property
    def x(self) -> Tensor:
        """Images, float32 (n, 3, height, width)."""

    @property
    def labels(self) -> Tensor:
        """Labels, int64 (n,); below 0 for a image that could not be read."""


class MemoryBatches:
    """Images resized and normalised once, to be gone through by every candidate.

    Args:
        images: in memory.
        img_size: side to resize to, in pixels.
        batch_size: images at a time.
    """

    def __init__(self, images: Images, img_size: int, batch_size: int = BATCH_SIZE) -> None:
        self._x = eval_batch(images, img_size).split(batch_size)
        self._labels = images.labels.split(batch_size)

    def __iter__(self) -> Iterator[LabelledBatch]:
        return map(_Batch, self._x, self._labels)


class _Batch:
    def __init__(self, x: Tensor, labels: Tensor) -> None:
        self.x, self.labels = x, labels


def accuracy_on(
    network: Callable[[Tensor], Tensor],
    batches: Iterable[LabelledBatch],
    device: str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> float:
    """Return the top-1 accuracy in percent; images that could not be read do not count.

    Args:
        network: maps (B, 3, height, width) to logits (B, classes), in eval mode, on `device`.
        batches: what to classify.
        device: where batches are put.
        precision: bf16 by autocast.

    Raises:
        ValueError: there is no image.
    """
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
        return percent(*count_correct(network, batches, device))


@torch.no_grad()
def count_correct(
    network: Callable[[Tensor], Tensor], batches: Iterable[LabelledBatch], device: str = "cpu"
) -> tuple[int, int]:
    """Return how many images are classified rightly, and of how many; as `accuracy_on`."""
    correct = seen = 0
    for batch in batches:
        labels = batch.labels.to(device)
        correct += int((network(batch.x.to(device)).argmax(1) == labels).sum())
        seen += int((labels >= 0).sum())
    return correct, seen


def percent(correct: float, seen: float) -> float:
    """Return the share in percent.

    Raises:
        ValueError: there is no image.
    """
    if not seen:
        raise ValueError(
            "no image to classify; expected some that can be read in the split that is opened, "
            "or held out of the training set (held_out_per_class)"
        )
    return 100 * correct / seen


def accuracy(
    network: Callable[[Tensor], Tensor],
    images: Images,
    img_size: int,
    batch_size: int = BATCH_SIZE,
) -> float:
    """Return the top-1 accuracy in percent on images in memory; arguments as `MemoryBatches`."""
    return accuracy_on(network, MemoryBatches(images, img_size, batch_size))


def inherited_accuracy(
    supernet: SupernetWeights,
    subnet: SubnetConfig,
    batches: Iterable[LabelledBatch],
    device: str = "cpu",
    img_size: int | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> float:
    """Return the top-1 accuracy in percent of a subnet with the supernet's weights.

    Args:
        supernet: trained weights.
        subnet: which one.
        batches: what to classify.
        device: where it runs.
        img_size: side of the images, where it is not the supernet's.
        precision: bf16 by autocast.
    """
    network = extract_subnet(supernet, subnet, img_size).to(device)
    return accuracy_on(network, batches, device, precision)


def load_averaged(run: Path, half: bool = True) -> SupernetWeights:
    """Load the averaged weights of a supernet's run.

    Args:
        run: run directory of `training.train`.
        half: round to fp16, as the file in the package is.

    Raises:
        ValueError: it trained one subnet, no supernet.
        FileNotFoundError: the run has no checkpoint.
        CheckpointError: its checkpoints are damaged.
    """
    weights = averaged_weights(run)
    if not isinstance(weights, SupernetWeights):
        raise ValueError(f"{run} trained one subnet; expected the run of a supernet")
    if not half:
        return weights
    return replace(weights, tensors={name: t.half() for name, t in weights.tensors.items()})


MOST_KEPT_BYTES = 8 << 30  # of held-out images; more are read again for every candidate


@dataclass(frozen=True, slots=True)
class Subject:
    """What is searched, and on which images.

    Args:
        supernet: trained weights.
        space: subnets to choose from.
        batches: held-out images, ready for the network; gone through for every candidate.
        identity: of weights and images, JSON-able: a search goes on only where it is the same.
        device: where candidates run.
        img_size: side of the images, where it is not the supernet's.
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
        """The space, at the size of the images: what costs are counted at."""
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
    images: int = 0,
) -> Subject:
    """Open a run of `training.train`, or a supernet file with a preset that says the rest.

    Args:
        data_dir: root of the data.
        run: run directory; or
        supernet: file of a supernet, official, PreNAS or canonical.
        preset: with a file, whose space, data and held-out images to take.
        half: round the run's weights to fp16.
        device: where candidates run; auto: CUDA where there is some.
        images: held-out images to score on, spread evenly over all of them; 0: all.

    Raises:
        ValueError: both or neither of run and supernet is given, `images` is below 0, or the
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
    # Every process sees all images: candidates are shared.
    source = open_source(alone, data_dir, SINGLE, Resources())
    batches, held_out = keep_held_out(source, config.largest_size, images)
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
    """Held-out images, spread evenly over all of them; read anew by everyone who goes through.

    Args:
        source: where they come from.
        img_size: their side, in pixels.
        share: (n, N) to keep n images of every N.
    """

    def __init__(self, source: DataSource, img_size: int, share: tuple[int, int] = (1, 1)) -> None:
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
    source: DataSource, img_size: int, images: int = 0
) -> tuple[Iterable[LabelledBatch], dict[str, Any]]:
    """Keep held-out images in memory, where they fit, and say which they are.

    Args:
        source: where they come from.
        img_size: their side, in pixels.
        images: how many, spread evenly: a folder is sorted by class. 0: all.

    Raises:
        ValueError: `images` is below 0.
    """
    if images < 0:
        raise ValueError(f"images is {images}; expected 0 for all, or how many")
    total = source.num_held_out or sum(len(each.labels) for each in source.held_out(img_size))
    count = min(images, total) or total
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
