"""CIFAR-10 in memory: the training images, a held-out split, and augmented batches.

Every batch follows from (seed, step) alone, so a run that was stopped goes on with the batch it
would have had. The test set is opened by `load_test` only, which only final evaluation calls.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.datasets import CIFAR10

from autoformer_zoo.published import CIFAR10_MEAN, CIFAR10_STD
from training.config import TrainConfig, space_of
from training.data.batch import (
    EVAL_BATCH,
    Batch,
    epoch_order,
    held_out_indices,
    mixed_seed,
    require_classes,
    seed_all,
)
from training.run.distributed import Ranks
from training.run.schedule import Schedule, StepPlan


@dataclass(frozen=True, slots=True)
class Images:
    """Images with labels.

    Args:
        images: uint8 (n, 3, height, width).
        labels: int64 (n,).
        positions: int64 (n,) of held-out images, in the set that they were cut from.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> Images:
        """Return the images at these positions."""
        indices = indices.to(self.labels.device)
        return Images(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> Images:
        """Return the images on a device."""
        return Images(self.images.to(device), self.labels.to(device))


def load_train(
    root: Path, held_out_per_class: int, seed: int, download: bool = False
) -> tuple[Images, Images]:
    """Load CIFAR-10's training set and cut the held-out split from it.

    Args:
        root: the directory that holds cifar-10-batches-py, as torchvision lays it out.
        held_out_per_class: images of each class to hold out.
        seed: decides which.
        download: fetch CIFAR-10 where it is not there.

    Returns:
        Images to train on, and held-out images for choosing, with their positions.

    Raises:
        FileNotFoundError: CIFAR-10 is not there and cannot be fetched, or its files are damaged.
    """
    images = _load(root, train=True, download=download)
    held_out = held_out_indices(images.labels, held_out_per_class, seed)
    keep = torch.ones(len(images), dtype=torch.bool)
    keep[held_out] = False
    train = images.select(keep.nonzero().squeeze(1))
    return train, replace(images.select(held_out), positions=held_out)


def load_test(root: Path) -> Images:
    """Load CIFAR-10's test set. For the final evaluation only; raises as `load_train` does."""
    return _load(root, train=False)


def train_batch(
    images: Images, img_size: int, seed: int, step: int, part: int = 0, parts: int = 1
) -> Tensor:
    """Augment a batch: resize, shift by up to an eighth of the side, flip, normalise.

    Args:
        images: the part of the batch.
        img_size: side to resize to, in pixels.
        seed: with `step`, decides every shift and flip.
        step: number of the batch in the run.
        part: which part of the batch: every `parts`-th image from this one on.
        parts: equal parts that the batch was divided into.

    Returns:
        float32 (n, 3, img_size, img_size).
    """
    generator = torch.Generator().manual_seed(mixed_seed(seed, step, "augmentation"))
    count, margin, device = len(images) * parts, img_size // 8, images.images.device
    shift = torch.randint(0, 2 * margin + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    shift, flip = shift[:, part::parts].to(device), flip[part::parts].to(device)
    x = F.pad(eval_batch(images, img_size), (margin,) * 4)
    span = torch.arange(img_size, device=device)
    rows = shift[0] + span  # (n, img_size)
    columns = shift[1] + torch.where(flip, span.flip(0), span)  # (n, img_size)
    image = torch.arange(len(images), device=device)[:, None, None]
    return x[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def eval_batch(images: Images, img_size: int) -> Tensor:
    """Resize and normalise a batch; float32 (n, 3, img_size, img_size)."""
    device = images.images.device
    mean = torch.tensor(CIFAR10_MEAN, device=device).view(3, 1, 1) * 255
    std = torch.tensor(CIFAR10_STD, device=device).view(3, 1, 1) * 255
    x = (images.images.float() - mean) / std
    if x.shape[-1] == img_size:
        return x
    return F.interpolate(x, size=img_size, mode="bilinear", antialias=True)


def _load(root: Path, train: bool, download: bool = False) -> Images:
    try:
        data = CIFAR10(str(root), train=train, download=download)
    except (RuntimeError, OSError) as error:  # the latter where a download fails
        raise FileNotFoundError(
            f"no whole CIFAR-10 under {root} ({error}); expected {root}/cifar-10-batches-py. "
            f"With a network, torchvision.datasets.CIFAR10('{root}', download=True) puts it there."
        ) from None
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return Images(images, torch.tensor(data.targets))


MOST_EVALUATED = 5000  # held-out images in memory that are looked at between epochs


class MemorySource:
    """Images in memory, augmented a batch at a time: shifts and flips.

    Args:
        config: what to train.
        train: images to train on.
        held_out: images for choosing.
        ranks: this process among all.

    Raises:
        ValueError: there are more classes than the network has.
    """

    def __init__(self, config: TrainConfig, train: Images, held_out: Images, ranks: Ranks) -> None:
        require_classes(train.labels, space_of(config).num_classes, config.data.source)
        self.num_train = len(train)
        self.held_out_list = [] if held_out.positions is None else held_out.positions.tolist()
        self._config = config
        self._train = train.to(ranks.device)
        self._held_out = held_out.select(torch.arange(min(len(held_out), MOST_EVALUATED)))
        self.num_held_out = len(self._held_out)
        self._ranks = ranks

    def train(self, schedule: Schedule, first: int, end: int) -> Generator[Batch, None, None]:
        """Yield this process's parts of the batches of steps first..end-1, in order."""
        config = self._config
        size, parts, repeats = config.batch_size, self._ranks.parts, config.augment.repeats
        for step in range(first, end):
            plan = schedule.plan(step)
            order = epoch_order(self.num_train, config.seed, plan.epoch, repeats)
            batch = order[plan.batch_in_epoch * size : (plan.batch_in_epoch + 1) * size]
            for part in self._ranks.own_parts:
                images = self._train.select(batch[part::parts])
                yield Batch(self._augmented(images, plan, part), images.labels)

    def _augmented(self, images: Images, plan: StepPlan, part: int) -> Tensor:
        seed, augment = self._config.seed, self._config.augment
        if augment.crop == "none":
            x = eval_batch(images, plan.img_size)
        else:
            x = train_batch(images, plan.img_size, seed, plan.step, part, self._ranks.parts)
        if augment.erasing:
            seed_all(mixed_seed(seed, plan.step, f"erasing/{part}"))
            x = RandomErasing(augment.erasing, mode="pixel", device=x.device)(x)
        return x

    def held_out(self, img_size: int) -> Iterator[Batch]:
        """Yield this process's share of the held-out images, unchanged but for their size."""
        whole = self._held_out.to(self._ranks.device)
        parts = torch.arange(len(whole)).split(EVAL_BATCH)
        for indices in parts[self._ranks.rank :: self._ranks.world]:
            images = whole.select(indices)
            yield Batch(eval_batch(images, img_size), images.labels)
