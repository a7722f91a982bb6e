"""CIFAR-10 in memory: the training pictures, a held-out split, and augmented batches.

Every batch follows from (seed, step) alone, so a run that was stopped goes on with the batch it
would have had. The test set is opened by `load_test` only, which only final evaluation calls.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import CIFAR10

from autoformer_zoo.autoformer import CIFAR10_MEAN, CIFAR10_STD


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures with labels.

    Args:
        images: uint8 (n, 3, height, width).
        labels: int64 (n,).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> Pictures:
        """Return the pictures at these positions."""
        return Pictures(self.images[indices], self.labels[indices])


def load_train(root: Path, held_out_per_class: int, seed: int) -> tuple[Pictures, Pictures]:
    """Load CIFAR-10's training set and cut the held-out split from it.

    Args:
        root: the directory that holds cifar-10-batches-py, as torchvision lays it out.
        held_out_per_class: pictures of each class to hold out.
        seed: decides which.

    Returns:
        Pictures to train on, and held-out pictures for choosing.

    Raises:
        FileNotFoundError: CIFAR-10 is not there, or its files are damaged.
    """
    pictures = _load(root, train=True)
    held_out = held_out_indices(pictures.labels, held_out_per_class, seed)
    keep = torch.ones(len(pictures), dtype=torch.bool)
    keep[held_out] = False
    return pictures.select(keep.nonzero().squeeze(1)), pictures.select(held_out)


def load_test(root: Path) -> Pictures:
    """Load CIFAR-10's test set. For the final evaluation only; raises as `load_train` does."""
    return _load(root, train=False)


def held_out_indices(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Draw `per_class` positions of each class, sorted; the same seed draws the same ones."""
    rng = np.random.default_rng(seed)
    drawn = [
        rng.choice(np.flatnonzero(labels.numpy() == label), per_class, replace=False)
        for label in range(int(labels.max()) + 1)
    ]
    return torch.from_numpy(np.sort(np.concatenate(drawn)))


@lru_cache(maxsize=2)  # every step of an epoch asks for it
def epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch: a permutation of 0..size-1 that follows from (seed, epoch)."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch, "order"))
    return torch.randperm(size, generator=generator)


def train_batch(pictures: Pictures, img_size: int, seed: int, step: int) -> Tensor:
    """Augment a batch: resize, shift by up to an eighth of the side, flip, normalise.

    Args:
        pictures: the batch.
        img_size: side to resize to, in pixels.
        seed: with `step`, decides every shift and flip.
        step: number of the batch in the run.

    Returns:
        float32 (n, 3, img_size, img_size).
    """
    generator = torch.Generator().manual_seed(mixed_seed(seed, step, "augmentation"))
    count, margin = len(pictures), img_size // 8
    shift = torch.randint(0, 2 * margin + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    x = F.pad(eval_batch(pictures, img_size), (margin,) * 4)
    span = torch.arange(img_size)
    rows = shift[0] + span  # (n, img_size)
    columns = shift[1] + torch.where(flip, span.flip(0), span)  # (n, img_size)
    picture = torch.arange(count)[:, None, None]
    return x[picture, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def eval_batch(pictures: Pictures, img_size: int) -> Tensor:
    """Resize and normalise a batch; float32 (n, 3, img_size, img_size)."""
    mean = torch.tensor(CIFAR10_MEAN).view(3, 1, 1) * 255
    std = torch.tensor(CIFAR10_STD).view(3, 1, 1) * 255
    x = (pictures.images.float() - mean) / std
    if x.shape[-1] == img_size:
        return x
    return F.interpolate(x, size=img_size, mode="bilinear", antialias=True)


def mixed_seed(seed: int, number: int, purpose: str) -> int:
    """Make a generator's seed from a run's seed, a step or epoch, and what it is for."""
    words = (seed, number, zlib.crc32(purpose.encode()))
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def _load(root: Path, train: bool) -> Pictures:
    try:
        data = CIFAR10(str(root), train=train, download=False)
    except RuntimeError as error:
        raise FileNotFoundError(
            f"no whole CIFAR-10 under {root} ({error}); expected {root}/cifar-10-batches-py. "
            f"With a network, torchvision.datasets.CIFAR10('{root}', download=True) puts it there."
        ) from None
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return Pictures(images, torch.tensor(data.targets))
