"""CIFAR-10 in memory: the training pictures, a held-out split, and augmented batches.

Every batch follows from (seed, step) alone, so a run that was stopped goes on with the batch it
would have had. The test set is opened by `load_test` only, which only final evaluation calls.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torchvision.datasets import CIFAR10

from autoformer_zoo.autoformer import CIFAR10_MEAN, CIFAR10_STD


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures with labels.

    Args:
        images: uint8 (n, 3, height, width).
        labels: int64 (n,).
        positions: int64 (n,) of held-out pictures, in the set that they were cut from.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> Pictures:
        """Return the pictures at these positions."""
        indices = indices.to(self.labels.device)
        return Pictures(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> Pictures:
        """Return the pictures on a device."""
        return Pictures(self.images.to(device), self.labels.to(device))


def load_train(
    root: Path, held_out_per_class: int, seed: int, download: bool = False
) -> tuple[Pictures, Pictures]:
    """Load CIFAR-10's training set and cut the held-out split from it.

    Args:
        root: the directory that holds cifar-10-batches-py, as torchvision lays it out.
        held_out_per_class: pictures of each class to hold out.
        seed: decides which.
        download: fetch CIFAR-10 where it is not there.

    Returns:
        Pictures to train on, and held-out pictures for choosing, with their positions.

    Raises:
        FileNotFoundError: CIFAR-10 is not there and cannot be fetched, or its files are damaged.
    """
    pictures = _load(root, train=True, download=download)
    held_out = held_out_indices(pictures.labels, held_out_per_class, seed)
    keep = torch.ones(len(pictures), dtype=torch.bool)
    keep[held_out] = False
    train = pictures.select(keep.nonzero().squeeze(1))
    return train, replace(pictures.select(held_out), positions=held_out)


def load_test(root: Path) -> Pictures:
    """Load CIFAR-10's test set. For the final evaluation only; raises as `load_train` does."""
    return _load(root, train=False)


def held_out_indices(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Draw `per_class` positions of each class, sorted; the same seed draws the same ones.

    Raises:
        ValueError: a class has no picture beyond those to hold out.
    """
    if not per_class:
        return torch.empty(0, dtype=torch.long)
    rng = np.random.default_rng(seed)
    drawn = []
    for label in range(int(labels.max()) + 1):
        positions = np.flatnonzero(labels.numpy() == label)
        if 0 < len(positions) <= per_class:
            raise ValueError(
                f"class {label} has {len(positions)} pictures; with held_out_per_class={per_class} "
                "none is left to train on: hold out fewer"
            )
        if len(positions):
            drawn.append(rng.choice(positions, per_class, replace=False))
    return torch.from_numpy(np.sort(np.concatenate(drawn)))


@lru_cache(maxsize=2)  # every step of an epoch asks for it
def epoch_order(size: int, seed: int, epoch: int, repeats: int = 1) -> Tensor:
    """Return the order of an epoch: positions 0..size-1, following from (seed, epoch).

    With repeats, each position comes so many times in a row, and as many positions are left out
    (repeated augmentation, arXiv 1902.05509). Parts of a batch take every P-th position, so copies
    go to different ones.
    """
    number = mixed_seed(seed, epoch, "order")
    if repeats == 1:
        return torch.randperm(size, generator=torch.Generator().manual_seed(number))
    sampler = RepeatAugSampler(
        range(size), num_replicas=1, rank=0, num_repeats=repeats, selected_round=0
    )
    sampler.set_epoch(number)  # it seeds its permutation by nothing else
    return torch.tensor(list(sampler))


def train_batch(
    pictures: Pictures, img_size: int, seed: int, step: int, part: int = 0, parts: int = 1
) -> Tensor:
    """Augment a batch: resize, shift by up to an eighth of the side, flip, normalise.

    Args:
        pictures: the part of the batch.
        img_size: side to resize to, in pixels.
        seed: with `step`, decides every shift and flip.
        step: number of the batch in the run.
        part: which part of the batch: every `parts`-th picture from this one on.
        parts: equal parts that the batch was divided into.

    Returns:
        float32 (n, 3, img_size, img_size).
    """
    generator = torch.Generator().manual_seed(mixed_seed(seed, step, "augmentation"))
    count, margin, device = len(pictures) * parts, img_size // 8, pictures.images.device
    shift = torch.randint(0, 2 * margin + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    shift, flip = shift[:, part::parts].to(device), flip[part::parts].to(device)
    x = F.pad(eval_batch(pictures, img_size), (margin,) * 4)
    span = torch.arange(img_size, device=device)
    rows = shift[0] + span  # (n, img_size)
    columns = shift[1] + torch.where(flip, span.flip(0), span)  # (n, img_size)
    picture = torch.arange(len(pictures), device=device)[:, None, None]
    return x[picture, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def eval_batch(pictures: Pictures, img_size: int) -> Tensor:
    """Resize and normalise a batch; float32 (n, 3, img_size, img_size)."""
    device = pictures.images.device
    mean = torch.tensor(CIFAR10_MEAN, device=device).view(3, 1, 1) * 255
    std = torch.tensor(CIFAR10_STD, device=device).view(3, 1, 1) * 255
    x = (pictures.images.float() - mean) / std
    if x.shape[-1] == img_size:
        return x
    return F.interpolate(x, size=img_size, mode="bilinear", antialias=True)


def mixed_seed(seed: int, number: int, purpose: str) -> int:
    """Make a generator's seed from a run's seed, a step or epoch, and what it is for."""
    words = (seed, number, zlib.crc32(purpose.encode()))
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def seed_all(seed: int) -> None:
    """Seed every generator that timm's transforms and mixtures draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _load(root: Path, train: bool, download: bool = False) -> Pictures:
    try:
        data = CIFAR10(str(root), train=train, download=download)
    except (RuntimeError, OSError) as error:  # the latter where a download fails
        raise FileNotFoundError(
            f"no whole CIFAR-10 under {root} ({error}); expected {root}/cifar-10-batches-py. "
            f"With a network, torchvision.datasets.CIFAR10('{root}', download=True) puts it there."
        ) from None
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return Pictures(images, torch.tensor(data.targets))
