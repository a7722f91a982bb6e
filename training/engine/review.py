"""What a trained network gets wrong: its confusion matrix, and its worst mistakes as images.

Only the held-out images are looked at. The images are shown as the network sees them, at its input
size: what was lost by shrinking or cropping is then visible, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.data.batch import DataSource
from training.engine.losses import Normalisation
from training.run.distributed import Ranks
from training.run.plots import plot_confusion, plot_images

CONFUSION = "confusion.svg"
MISTAKES = "mistakes.png"
MAX_CLASSES = 60  # more cannot be told apart in a confusion matrix
MAX_MISTAKES = 24


@dataclass(frozen=True, slots=True)
class Mistake:
    """A held-out image with a wrong prediction."""

    image: Tensor  # float32 (3, height, width), normalised
    label: int
    predicted: int
    probability: float  # of the predicted class


@dataclass(frozen=True, slots=True)
class Review:
    """Predictions on the held-out images."""

    confusion: Tensor  # int64 (num_classes, num_classes): images by label and predicted class
    mistakes: list[Mistake]  # the most confident ones first


@torch.no_grad()
def review(
    network: Callable[[Tensor], Tensor], source: DataSource, img_size: int, ranks: Ranks
) -> Review:
    """Classify the held-out images.

    Args:
        network: maps (B, 3, height, width) to logits (B, num_classes), in eval mode.
        source: has the held-out images.
        img_size: their side in pixels.
        ranks: this process among all; each classifies its share.
    """
    classes = source.num_classes
    counts = torch.zeros(classes * classes, dtype=torch.int64)
    worst: list[Mistake] = []
    for batch in source.held_out(img_size):
        probabilities, predicted = network(batch.x).float().softmax(1).max(1)
        for i, label in enumerate(batch.labels.tolist()):
            if label < 0:  # could not be read
                continue
            guess = int(predicted[i])
            counts[label * classes + guess] += 1
            if guess != label:
                worst.append(Mistake(batch.x[i].cpu(), label, guess, float(probabilities[i])))
        worst = _worst(worst)
    confusion = torch.tensor(ranks.sums(counts.tolist()), dtype=torch.int64)
    shared = [mistake for part in ranks.gathered(worst) for mistake in part]
    return Review(confusion.view(classes, classes), _worst(shared))


def draw_review(found: Review, class_names: Sequence[str], given: Normalisation, run: Path) -> None:
    """Write confusion.svg and mistakes.png into a run directory.

    Args:
        found: what `review` returned.
        class_names: name of each class; those without one are called by their number.
        given: normalisation of the images.
        run: the run directory.
    """
    names = [*class_names, *map(str, range(len(class_names), len(found.confusion)))]
    if 2 <= len(names) <= MAX_CLASSES:
        plot_confusion(found.confusion.tolist(), names, run / CONFUSION)
    if found.mistakes:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in given)
        images = [(m.image * std + mean).clamp(0, 1).permute(1, 2, 0) for m in found.mistakes]
        titles = [
            f"{names[m.label]}\ntaken for {names[m.predicted]} ({m.probability:.0%})"
            for m in found.mistakes
        ]
        plot_images([image.numpy() for image in images], titles, run / MISTAKES)


def _worst(mistakes: list[Mistake]) -> list[Mistake]:
    most_confident = sorted(mistakes, key=lambda mistake: mistake.probability, reverse=True)
    return most_confident[:MAX_MISTAKES]
