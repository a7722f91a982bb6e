"""The confusion matrix and the worst mistakes of a trained network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from training.data.batch import Batch
from training.engine.review import CONFUSION, MAX_MISTAKES, MISTAKES, draw_review, review
from training.run.distributed import SINGLE

NAMES = ("cat", "dog", "frog")
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Held:
    """Images whose mean is the logit of class 1; class 0 has logit 0, class 2 never wins."""

    num_classes = 3

    def held_out(self, img_size: int) -> Iterator[Batch]:
        for logits, labels in (((1.0, -1.0, 3.0), (1, 0, 0)), ((2.0, -2.0, 0.5), (2, -1, 0))):
            x = torch.tensor(logits).view(3, 1, 1, 1).expand(3, 3, img_size, img_size)
            yield Batch(x, torch.tensor(labels))


def network(x: torch.Tensor) -> torch.Tensor:
    logit = x.mean((1, 2, 3))
    return torch.stack([torch.zeros_like(logit), logit, torch.full_like(logit, -9)], dim=1)


def test_review_counts_by_class_and_keeps_the_most_confident_mistakes(tmp_path: Path) -> None:
    found = review(network, Held(), 4, SINGLE)
    # The unreadable image, of label -1, does not count.
    assert found.confusion.tolist() == [[1, 2, 0], [0, 1, 0], [0, 1, 0]]
    kept = [(mistake.label, mistake.predicted) for mistake in found.mistakes]
    assert kept == [(0, 1), (2, 1), (0, 1)]
    assert [round(float(mistake.image.mean()), 1) for mistake in found.mistakes] == [3.0, 2.0, 0.5]

    for folder, names in (("a", NAMES), ("b", NAMES), ("fewer names", NAMES[:1])):
        (tmp_path / folder).mkdir()
        draw_review(found, names, PLAIN, tmp_path / folder)
    drawn = [(tmp_path / folder / CONFUSION).read_bytes() for folder in ("a", "b")]
    assert drawn[0] == drawn[1]
    with Image.open(tmp_path / "a" / MISTAKES) as sheet:
        assert sheet.size[0] > 100


def test_few_of_many_mistakes_are_kept() -> None:
    class Wrong(Held):
        def held_out(self, img_size: int) -> Iterator[Batch]:
            for _ in range(3):
                yield Batch(torch.rand(20, 3, img_size, img_size), torch.zeros(20).long())

    found = review(network, Wrong(), 4, SINGLE)
    probabilities = [mistake.probability for mistake in found.mistakes]
    assert len(probabilities) == MAX_MISTAKES
    assert probabilities == sorted(probabilities, reverse=True)
    assert int(found.confusion[0, 1]) == 60
