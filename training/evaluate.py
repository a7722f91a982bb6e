"""Top-1 accuracy of a network on pictures in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from training.data import Pictures, eval_batch


@torch.no_grad()
def accuracy(
    network: Callable[[Tensor], Tensor], pictures: Pictures, img_size: int, batch_size: int = 250
) -> float:
    """Return the top-1 accuracy in percent.

    Args:
        network: maps (B, 3, img_size, img_size) to logits (B, classes), in eval mode.
        pictures: what to classify.
        img_size: side that the pictures are resized to, in pixels.
        batch_size: pictures at a time.
    """
    correct = 0
    for start in range(0, len(pictures), batch_size):
        batch = pictures.select(torch.arange(start, min(start + batch_size, len(pictures))))
        correct += int((network(eval_batch(batch, img_size)).argmax(1) == batch.labels).sum())
    return 100 * correct / len(pictures)
