"""accuracies.py: figures stand under names that exist, and are percentages."""

from __future__ import annotations

from typing import Any

import pytest

from autoformer_zoo.autoformer import default_cfgs
from autoformer_zoo.published import MEASURED, PUBLISHED, Accuracy


@pytest.mark.parametrize("table", [PUBLISHED, MEASURED], ids=["published", "measured"])
def test_every_figure_belongs_to_weights_of_the_registry(table: Any) -> None:
    known = {f"{name}.{tag}" for name, cfgs in default_cfgs.items() for tag in cfgs.tags}
    assert set(table) <= known


@pytest.mark.parametrize(
    ("name", "top1_percent", "top5_percent"),
    [
        ("autoformer_tiny.ms_in1k", 75.3, 92.7),
        ("autoformer_small.ms_in1k", 81.7, 95.7),
        ("autoformer_base.ms_in1k", 82.4, 95.7),
        ("prenas_tiny_6m.in1k", 77.1, 93.4),
        ("prenas_small_23m.in1k", 81.8, 95.9),
        ("prenas_base_54m.in1k", 82.6, 96.0),
    ],
)
def test_published_figures_are_the_authors(
    name: str, top1_percent: float, top5_percent: float
) -> None:
    accuracy = PUBLISHED[name]
    assert (accuracy.top1_percent, accuracy.top5_percent) == (top1_percent, top5_percent)


@pytest.mark.parametrize(("top1", "top5"), [(0.9, 0.5), (101.0, None), (-1.0, 5.0)])
def test_figures_that_are_no_percentages_are_refused(top1: float, top5: float | None) -> None:
    with pytest.raises(ValueError, match=f"top-1 {top1} and top-5 {top5}; expected percentages"):
        Accuracy(top1, top5, "CIFAR-10 test", "here")
