"""Top-1 accuracy of networks on pictures in memory, and of subnets with inherited weights.

What the search calls for every candidate: the static network, extracted anew, on batches that were
resized and normalised once. Top-5, classes and throughput of finished models are
`benchmarks.accuracy`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from autoformer_zoo.checkpoint import SupernetWeights
from autoformer_zoo.extract import extract_subnet
from autoformer_zoo.space import SubnetConfig
from training.data import Pictures, eval_batch
from training.weights import averaged_weights

BATCH_SIZE = 100  # on 2 cores, nano: 4 % faster than 125, 25 % than 250, and 20 no better


class LabelledBatch(Protocol):
    """Pictures ready for a network, with labels; `sources.Batch` is one."""

    @property
    def x(self) -> Tensor:
        """Pictures, float32 (n, 3, height, width)."""

    @property
    def labels(self) -> Tensor:
        """Labels, int64 (n,); below 0 for a picture that could not be read."""


class MemoryBatches:
    """Pictures resized and normalised once, to be gone through by every candidate.

    Args:
        pictures: in memory.
        img_size: side to resize to, in pixels.
        batch_size: pictures at a time.
    """

    def __init__(self, pictures: Pictures, img_size: int, batch_size: int = BATCH_SIZE) -> None:
        self._x = eval_batch(pictures, img_size).split(batch_size)
        self._labels = pictures.labels.split(batch_size)

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
    """Return the top-1 accuracy in percent; pictures that could not be read do not count.

    Args:
        network: maps (B, 3, height, width) to logits (B, classes), in eval mode, on `device`.
        batches: what to classify.
        device: where batches are put.
        precision: bf16 by autocast.

    Raises:
        ValueError: there is no picture.
    """
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
        return percent(*count_correct(network, batches, device))


@torch.no_grad()
def count_correct(
    network: Callable[[Tensor], Tensor], batches: Iterable[LabelledBatch], device: str = "cpu"
) -> tuple[int, int]:
    """Return how many pictures are classified rightly, and of how many; as `accuracy_on`."""
    correct = seen = 0
    for batch in batches:
        labels = batch.labels.to(device)
        correct += int((network(batch.x.to(device)).argmax(1) == labels).sum())
        seen += int((labels >= 0).sum())
    return correct, seen


def percent(correct: float, seen: float) -> float:
    """Return the share in percent.

    Raises:
        ValueError: there is no picture.
    """
    if not seen:
        raise ValueError(
            "no picture to classify; expected some that can be read in the split that is opened, "
            "or held out of the training set (held_out_per_class)"
        )
    return 100 * correct / seen


def accuracy(
    network: Callable[[Tensor], Tensor],
    pictures: Pictures,
    img_size: int,
    batch_size: int = BATCH_SIZE,
) -> float:
    """Return the top-1 accuracy in percent on pictures in memory; arguments as `MemoryBatches`."""
    return accuracy_on(network, MemoryBatches(pictures, img_size, batch_size))


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
        img_size: side of the pictures, where it is not the supernet's.
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
