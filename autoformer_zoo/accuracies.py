"""Accuracies of the named weights, as data: what their authors published, and what was measured.

The two are kept apart on purpose: published figures were not reproduced unless the same weights
also stand in `MEASURED`. Standard library only.

Sources: README of microsoft/Cream@4a13c40 (AutoFormer) for the released files, arXiv 2107.00651,
table 3, for the paper; PreNAS (ICML 2023, arXiv 2304.14636) for its subnets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What one set of weights scores.

    Args:
        top1_percent: share of pictures whose best answer is right.
        top5_percent: share whose five best answers hold the right one; None where not stated.
        dataset: the pictures.
        by: who says so, and where; for a measured one, how it was measured.
    """

    top1_percent: float
    top5_percent: float | None
    dataset: str
    by: str

    def __post_init__(self) -> None:
        top5 = 100.0 if self.top5_percent is None else self.top5_percent
        if not 0 <= self.top1_percent <= top5 <= 100:
            raise ValueError(
                f"top-1 {self.top1_percent} and top-5 {self.top5_percent}; expected percentages, "
                "the first not above the second"
            )


def _release(top1_percent: float, top5_percent: float, paper_percent: float) -> Accuracy:
    by = f"AutoFormer's release; the paper says {paper_percent} top-1"
    return Accuracy(top1_percent, top5_percent, "ImageNet-1k validation", by)


def _prenas(top1_percent: float, top5_percent: float) -> Accuracy:
    return Accuracy(top1_percent, top5_percent, "ImageNet-1k validation", "PreNAS")


PUBLISHED: Mapping[str, Accuracy] = MappingProxyType(
    {
        "autoformer_tiny.ms_in1k": _release(75.3, 92.7, paper_percent=74.7),
        "autoformer_small.ms_in1k": _release(81.7, 95.7, paper_percent=81.7),
        "autoformer_base.ms_in1k": _release(82.4, 95.7, paper_percent=82.4),
        "prenas_tiny_6m.in1k": _prenas(77.1, 93.4),
        "prenas_small_23m.in1k": _prenas(81.8, 95.9),
        "prenas_base_54m.in1k": _prenas(82.6, 96.0),
    }
)
"""What the authors state, by model.tag; absent where they state nothing for these weights."""

MEASURED: Mapping[str, Accuracy] = MappingProxyType(
    {
        "autoformer_nano.cifar10": Accuracy(
            82.34, None, "CIFAR-10 test", "training.choose, see docs/nano.md"
        ),
    }
)
"""What was measured with this package, by model.tag."""
