"""What a step works on: stage, batch and learning rate. All of it follows from its number.

Source: arXiv 2107.00651, section 4.1 (warm-up and cosine).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.settings.config import TrainConfig


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a step works on."""

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
        epoch, batch = divmod(step, self.steps_per_epoch)
        return StepPlan(step, epoch, batch, self._img_size(epoch), self._lr_scale(step))

    def evaluates_after(self, plan: StepPlan) -> bool:
        """Return True if the held-out images are evaluated after a step."""
        if plan.batch_in_epoch != self.steps_per_epoch - 1:
            return False
        return (plan.epoch + 1) % self.config.evaluate_every == 0 or plan.step + 1 == self.total

    def _img_size(self, epoch: int) -> int:
        end = 0
        for stage in self.config.stages:
            end += stage.epochs
            if epoch < end:
                return stage.img_size
        return self.config.largest_size

    def _lr_scale(self, step: int) -> float:
        """Rise linearly over the warm-up, then fall along a cosine to `min_lr_ratio`."""
        warmup = max(1, int(self.total * self.config.warmup_fraction))
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, self.total - warmup)
        low = self.config.min_lr_ratio
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))
