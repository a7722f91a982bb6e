"""What a search optimises: held-out accuracy of subnets with the weights of a trained supernet.

Read `SearchTask` first. Every candidate is extracted as a static network and classifies batches
that were resized and normalised once. `benchmarks.accuracy` measures finished models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from autoformer_zoo.models.factory import extract_subnet
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.weights.checkpoint import SupernetWeights
from autoformer_zoo.weights.header import notes_to_cfg
from autoformer_zoo.weights.pretrained import load_supernet
from training.data.batch import Batch, DataSource
from training.data.identity import check_data
from training.data.open import open_source
from training.engine.weights import averaged_weights
from training.run.directory import read_config
from training.run.distributed import SINGLE, device_of
from training.settings.config import Resources, space_of
from training.settings.presets import PRESETS

MAX_KEPT_BYTES = 8 << 30  # of held-out images in memory; more are read again for every candidate


@dataclass(frozen=True, slots=True)
class SearchTask:
    """The weights to search, and the images that subnets are scored on.

    Args:
        supernet: trained weights.
        space: subnets to choose from.
        batches: held-out images, ready for the network; iterated over for every candidate.
        identity: what identifies weights and images, JSON-able: a search is resumed only with the
            same one.
        device: where candidates run.
        img_size: side of the images in pixels; the supernet's by default.
        precision: of the forward pass, whatever the weights' type.
    """

    supernet: SupernetWeights
    space: SearchSpace
    batches: Iterable[Batch]
    identity: Mapping[str, Any]
    device: str = "cpu"
    img_size: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"

    @property
    def scored_space(self) -> SearchSpace:
        """The space at the size of the images, which costs are counted at."""
        return replace(self.space, img_size=self.img_size or self.space.img_size)

    def accuracy(self, subnet: SubnetConfig) -> float:
        """Return the held-out top-1 accuracy in percent of a subnet with inherited weights."""
        return inherited_accuracy(
            self.supernet, subnet, self.batches, self.device, self.img_size, self.precision
        )


def open_task(
    data_dir: Path,
    run: Path | None = None,
    supernet: str | None = None,
    preset: str = "cifar10",
    half: bool = True,
    device: str = "auto",
    images: int = 0,
) -> SearchTask:
    """Open a training run, or a supernet with a preset for the space and the data.

    Args:
        data_dir: root of the data.
        run: run directory of `training.train`; or
        supernet: name of a model, or file of a supernet: official, PreNAS or canonical.
        preset: for a supernet: whose space, data and held-out images to use.
        half: round the run's weights to fp16.
        device: where candidates run; auto: CUDA if there is a GPU.
        images: held-out images to score on, spread evenly over all of them; 0: all (of source
            cifar10 at most 5,000).

    Raises:
        ValueError: both or neither of run and supernet is given, the weights and the data have
            different classes, `images` is below 0, or the device cannot be used.
        FileNotFoundError: the run, the file or the data does not exist.
        CheckpointError: the weights cannot be read.
    """
    if (run is None) == (supernet is None):
        raise ValueError("give either --run-dir, a training run, or --supernet, a name or file")
    device = str(device_of(device))
    if run is not None:
        config, weights = read_config(run), load_averaged(run, half)
    else:
        assert supernet is not None
        config, weights = PRESETS[preset], load_supernet(supernet)
    # Every process opens all images: processes share candidates, not images.
    source = open_source(config, data_dir, SINGLE, Resources())
    if run is not None:
        check_data(source, run)
    else:
        _check_names(source.class_names, weights)
    batches, held_out = keep_held_out(source, config.largest_size, images)
    identity = {
        "supernet_sha256": hash_tensors(weights.tensors),
        "space": space_of(config).to_dict(),
        "img_size": config.largest_size,
        "source": config.data.source,
        "split": config.data.held_out_split or config.data.train_split,
        **held_out,
    }
    return SearchTask(weights, space_of(config), batches, identity, device, config.largest_size)


def _check_names(names: tuple[str, ...], weights: SupernetWeights) -> None:
    """Refuse images whose classes are not those in the header of the weights, if both are known."""
    known = notes_to_cfg(weights.metadata).get("label_names", names)
    if names and tuple(known) != names:
        raise ValueError(
            f"the supernet's classes are {_first(known)}, those of the data {_first(names)}; "
            "use the data that it was trained on, and the preset for it"
        )


def _first(names: Sequence[str]) -> str:
    return f"{len(names)}: " + ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def load_averaged(run: Path, half: bool = True) -> SupernetWeights:
    """Load the averaged weights of a supernet's run.

    Args:
        run: run directory of `training.train`.
        half: round to fp16, as in the embedded file.

    Raises:
        ValueError: the run trained one subnet, not a supernet.
        FileNotFoundError: the run has no checkpoint.
        CheckpointError: its checkpoints are damaged.
    """
    weights = averaged_weights(run)
    if not isinstance(weights, SupernetWeights):
        raise ValueError(f"{run} trained one subnet; expected the run of a supernet")
    if not half:
        return weights
    return replace(weights, tensors={name: t.half() for name, t in weights.tensors.items()})


def keep_held_out(
    source: DataSource, img_size: int, images: int = 0
) -> tuple[Iterable[Batch], dict[str, Any]]:
    """Keep held-out images in memory, if they fit.

    Args:
        source: where they come from.
        img_size: their side in pixels.
        images: how many, spread evenly, since a folder is sorted by class. 0: all.

    Returns:
        Batches that can be iterated over again, and what identifies them, JSON-able.

    Raises:
        ValueError: `images` is below 0.
    """
    if images < 0:
        raise ValueError(f"images is {images}; expected a positive number, or 0 for all")
    total = source.num_held_out or sum(len(b.labels) for b in source.held_out(img_size))
    count = min(images, total) or total
    digest = hashlib.sha256(json.dumps(source.held_out_list).encode())
    batches: Iterable[Batch] = _Spread(source, img_size, count, max(1, total))
    if count * 3 * img_size**2 * 4 <= MAX_KEPT_BYTES:
        batches = list(batches)
        for batch in batches:
            digest.update(batch.labels.numpy().tobytes())
    return batches, {"held_out": count, "held_out_of": total, "held_out_sha256": digest.hexdigest()}


class _Spread:
    """Some of a source's held-out images, spread evenly; read again at every iteration.

    Args:
        source: where they come from.
        img_size: their side in pixels.
        count: number of images to yield.
        total: number of images that the source has.
    """

    def __init__(self, source: DataSource, img_size: int, count: int, total: int) -> None:
        self._source, self._img_size = source, img_size
        self._count, self._total = count, total

    def __iter__(self) -> Iterator[Batch]:
        first = 0
        for batch in self._source.held_out(self._img_size):
            number = torch.arange(first, first + len(batch.labels), device=batch.labels.device)
            first += len(number)
            # Image i is kept if i * count / total passes a whole number.
            kept = (number + 1) * self._count // self._total > number * self._count // self._total
            if kept.any():
                yield Batch(batch.x[kept], batch.labels[kept], batch.broken)


def inherited_accuracy(
    supernet: SupernetWeights,
    subnet: SubnetConfig,
    batches: Iterable[Batch],
    device: str = "cpu",
    img_size: int | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> float:
    """Return the top-1 accuracy in percent of a subnet with the supernet's weights.

    Args:
        supernet: trained weights.
        subnet: which one.
        batches: images to classify.
        device: where it runs.
        img_size: side of the images in pixels; the supernet's by default.
        precision: bf16 by autocast.
    """
    network = extract_subnet(supernet, subnet, img_size).to(device)
    return accuracy_on(network, batches, device, precision)


def accuracy_on(
    network: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    device: str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> float:
    """Return the top-1 accuracy in percent; images that could not be read do not count.

    Args:
        network: maps (B, 3, height, width) to logits (B, classes), in eval mode, on `device`.
        batches: images to classify.
        device: where batches are put.
        precision: bf16 by autocast.

    Raises:
        ValueError: there is no image.
    """
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
        return percent(*count_correct(network, batches, device))


@torch.no_grad()
def count_correct(
    network: Callable[[Tensor], Tensor], batches: Iterable[Batch], device: str = "cpu"
) -> tuple[int, int]:
    """Return the numbers of correctly classified and of readable images; as `accuracy_on`."""
    correct = readable = 0
    for batch in batches:
        labels = batch.labels.to(device)
        correct += int((network(batch.x.to(device)).argmax(1) == labels).sum())
        readable += int((labels >= 0).sum())
    return correct, readable


def percent(correct: float, readable: float) -> float:
    """Return the share in percent.

    Raises:
        ValueError: there is no image.
    """
    if not readable:
        raise ValueError(
            "no image to classify; expected some that can be read in the split that is opened, "
            "or held out of the training set (held_out_per_class)"
        )
    return 100 * correct / readable


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        flat = tensors[name].detach().reshape(-1).contiguous()
        digest.update(name.encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
