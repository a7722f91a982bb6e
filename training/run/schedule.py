"""What a step works on: stage, batch and learning rate. All of it follows from its number.

Source: arXiv 2107.00651, section 4.1 (warm-up and cosine).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.config import TrainConfig


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a step works on; all of it follows from the config and the step's number."""

    step: int
    epoch: int
    batch_in_epoch: int
    img_size: int
    lr_scale: float  # of the config's lr


@dataclass(frozen=True, slots=True)
class Schedule:
    """The plans of a run's steps.

    Args:
        config: what to train.
        num_images: size of the training set. What is left over of a batch is dropped.

    Raises:
        ValueError: the training set is smaller than a batch.
    """

    config: TrainConfig
    num_images: int

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"{self.num_images} images to train on, batch_size is "
                f"{self.config.batch_size}; expected a smaller batch or more images"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch."""
        return self.num_images // self.config.batch_size

    @property
    def total(self) -> int:
        """Steps of the run."""
        return self.config.epochs * self.steps_per_epoch

    def plan(self, step: int) -> StepPlan:
        """Return what step number `step` works on."""
        return plan_step(self.config, step, self.steps_per_epoch)

    def evaluates_after(self, plan: StepPlan) -> bool:
        """Tell whether held-out images are looked at after a step."""
        if plan.batch_in_epoch != self.steps_per_epoch - 1:
            return False
        return (plan.epoch + 1) % self.config.evaluate_every == 0 or plan.step + 1 == self.total


def plan_step(config: TrainConfig, step: int, steps_per_epoch: int) -> StepPlan:
    """Return what step number `step` works on: stage, batch, and learning rate."""
    epoch, batch = divmod(step, steps_per_epoch)
    end = 0
    img_size = config.largest_size
    for stage in config.stages:
        end += stage.epochs
        if epoch < end:
            img_size = stage.img_size
            break
    total = config.epochs * steps_per_epoch
    warmup = max(1, int(total * config.warmup_fraction))
    if step < warmup:
        scale = (step + 1) / warmup
    else:
        done = (step - warmup) / max(1, total - warmup)
        low = config.min_lr_ratio
        scale = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))
    return StepPlan(step, epoch, batch, img_size, scale)
