"""CIFAR-10 in memory, on the device: whole batches are augmented at once.

The test set is opened by `load_test` alone, which only the final evaluation calls.
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
from training.data.batch import (
    EVAL_BATCH,
    Answers,
    Batch,
    Batching,
    cut_held_out,
    mixed_seed,
    seed_all,
)
from training.data.views import MAX_VIEWS, make_views, parse_policy, view_numbers
from training.run.schedule import Schedule, StepPlan
from training.settings.config import AugmentConfig

MAX_EVALUATED = 5000  # held-out images that are evaluated between epochs
GPU_BATCH = 1000  # in place of EVAL_BATCH on a GPU, where launching kernels takes the time


@dataclass(frozen=True, slots=True)
class Images:
    """Images with labels.

    Args:
        images: uint8 (n, 3, height, width).
        labels: int64 (n,).
        positions: int64 (n,) of held-out images in the set that they were cut from.
        class_names: name of each class, if known.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor | None = None
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> Images:
        """Return the images at these positions."""
        indices = indices.to(self.labels.device)
        return Images(self.images[indices], self.labels[indices], None, self.class_names)

    def to(self, device: torch.device) -> Images:
        """Return the images on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


def load_train(
    root: Path, held_out_per_class: float, seed: int, download: bool = False
) -> tuple[Images, Images]:
    """Load CIFAR-10's training set and cut the held-out images from it.

    Args:
        root: the directory that holds cifar-10-batches-py, as torchvision has it.
        held_out_per_class: images of each class to hold out, or below 1 their share.
        seed: decides which.
        download: fetch CIFAR-10 if it is missing.

    Returns:
        Images to train on, and held-out images with their positions.

    Raises:
        FileNotFoundError: CIFAR-10 is missing and cannot be fetched, or its files are damaged.
    """
    images = _load(root, train=True, download=download)
    train, held_out = cut_held_out(images.labels, held_out_per_class, seed)
    return images.select(train), replace(images.select(held_out), positions=held_out)


def load_test(root: Path) -> Images:
    """Load CIFAR-10's test set. For the final evaluation only; raises as `load_train` does."""
    return _load(root, train=False)


def _load(root: Path, train: bool, download: bool = False) -> Images:
    try:
        data = CIFAR10(str(root), train=train, download=download)
    except (RuntimeError, OSError) as error:  # OSError if a download fails
        raise FileNotFoundError(
            f"no whole CIFAR-10 under {root} ({error}); expected {root}/cifar-10-batches-py. "
            f"With a network, torchvision.datasets.CIFAR10('{root}', download=True) puts it there."
        ) from None
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return Images(images, torch.tensor(data.targets), class_names=tuple(data.classes))


class MemorySource:
    """Images in memory.

    Args:
        train: images to train on.
        held_out: images for choosing.
        augment: only what works on whole batches: crop none or shift, erasing, and policies of
            `views.parse_policy`.
        batching: how batches are formed.

    Raises:
        ValueError: there are more classes than the network has, or the policy is unknown.
    """

    def __init__(
        self, train: Images, held_out: Images, augment: AugmentConfig, batching: Batching
    ) -> None:
        batching.require_classes(train.labels, "cifar10")
        parse_policy(augment.policy)
        self.class_names, self.num_classes = train.class_names, batching.num_classes
        self.num_train, self.num_held_out = len(train), len(held_out)
        self.held_out_list = [] if held_out.positions is None else held_out.positions.tolist()
        self._train = train.to(batching.ranks.device)
        self._held_out = held_out
        self._augment, self._batching = augment, batching
        self._answers: Answers | None = None

    def use_answers(self, answers: Answers) -> None:
        """Show in epoch e the view e mod `answers.views` of each image, with its answer."""
        self._answers = answers

    def train(self, schedule: Schedule, first: int, end: int) -> Generator[Batch, None, None]:
        """Yield this process's parts of the batches of steps first..end-1, in order."""
        ranks = self._batching.ranks
        for step in range(first, end):
            plan = schedule.plan(step)
            batch = self._batching.positions(plan, self.num_train)
            for part in ranks.own_parts:
                places = torch.arange(part, len(batch), ranks.parts)
                positions = batch[places]
                images, answers = self._train.select(positions), None
                if self._answers:
                    view = plan.epoch % self._answers.views
                    answers = self._answers.of(positions, view).to(ranks.device)
                copies = self._batching.copies(plan, places)
                x = self._augmented(images, positions, copies, plan, part)
                yield Batch(x, images.labels, answers=answers)

    def view(self, view: int, img_size: int) -> Iterator[Batch]:
        """Yield all training images in order, augmented as a fixed view of theirs."""
        size = _batch_size(self._train.images.device)
        for positions in torch.arange(len(self._train)).split(size):
            images, numbers = self._train.select(positions), view_numbers(positions, view)
            yield Batch(view_batch(images, img_size, numbers, self._augment), images.labels)

    def _augmented(
        self, images: Images, positions: Tensor, copies: Tensor, plan: StepPlan, part: int
    ) -> Tensor:
        seed, parts = self._batching.seed, self._batching.ranks.parts
        if self._answers or self._augment.policy:
            # Without answers every copy is a new view, apart from a teacher's fixed ones.
            new = MAX_VIEWS + plan.epoch * self._batching.repeats + copies
            view = plan.epoch % self._answers.views if self._answers else new
            x = view_batch(images, plan.img_size, view_numbers(positions, view), self._augment)
        elif self._augment.crop == "none":
            x = eval_batch(images, plan.img_size)
        else:
            x = train_batch(images, plan.img_size, seed, plan.step, part, parts)
        if self._augment.erasing:
            seed_all(mixed_seed(seed, plan.step, f"erasing/{part}"))
            x = RandomErasing(self._augment.erasing, mode="pixel", device=x.device)(x)
        return x

    def held_out(self, img_size: int) -> Iterator[Batch]:
        """Yield this process's share of the held-out images, only resized and normalised."""
        ranks = self._batching.ranks
        images = self._held_out.to(ranks.device)
        parts = torch.arange(len(images)).split(_batch_size(ranks.device))
        for indices in parts[ranks.rank :: ranks.world]:
            chosen = images.select(indices)
            yield Batch(eval_batch(chosen, img_size), chosen.labels)


def _batch_size(device: torch.device) -> int:
    return EVAL_BATCH if device.type == "cpu" else GPU_BATCH


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
    # Drawn for the whole batch, so that an image's shift does not depend on the number of parts.
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


def view_batch(images: Images, img_size: int, numbers: Tensor, augment: AugmentConfig) -> Tensor:
    """Make views at the images' own size, then resize them.

    Args:
        images: n of them.
        img_size: side to resize to, in pixels.
        numbers: int64 (n,): each decides its image's view.
        augment: policy, and whether to shift and flip.

    Returns:
        float32 (n, 3, img_size, img_size).
    """
    x = eval_batch(images, images.images.shape[-1])
    x = make_views(x, numbers, augment.policy, augment.crop == "shift")
    if x.shape[-1] == img_size:
        return x
    return F.interpolate(x, size=img_size, mode="bilinear", antialias=True)
