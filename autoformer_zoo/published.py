"""The published search spaces and subnets, as data.

Sources: AutoFormer's spaces are table 1 of arXiv 2107.00651 with base's heads as released
(9, 10; the paper says 8-10), its subnets the YAML files of the official repository
(microsoft/Cream at 4a13c40). PreNAS' subnets are those of its repository (ICML 2023): the same
network and supernet shapes, one subnet a budget in millions of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from autoformer_zoo.space import SearchSpace, SubnetConfig

SPACES = MappingProxyType(
    {
        "tiny": SearchSpace(
            embed_dim=(192, 216, 240),
            num_heads=(3, 4),
            mlp_ratio=(3.5, 4.0),
            depth=(12, 13, 14),
            supernet=SubnetConfig.uniform(14, 256, 4, 4.0),
        ),
        "small": SearchSpace(
            embed_dim=(320, 384, 448),
            num_heads=(5, 6, 7),
            mlp_ratio=(3.0, 3.5, 4.0),
            depth=(12, 13, 14),
            supernet=SubnetConfig.uniform(14, 448, 7, 4.0),
        ),
        "base": SearchSpace(
            embed_dim=(528, 576, 624),
            num_heads=(9, 10),
            mlp_ratio=(3.0, 3.5, 4.0),
            depth=(14, 15, 16),
            supernet=SubnetConfig.uniform(16, 640, 10, 4.0),
        ),
        # Trained by this project on CIFAR-10; its supernet ships inside the package.
        "nano": SearchSpace(
            embed_dim=(128, 160, 192),
            num_heads=(2, 3),
            mlp_ratio=(3.0, 3.5, 4.0),
            depth=(5, 6, 7),
            supernet=SubnetConfig.uniform(7, 192, 3, 4.0),
            img_size=32,
            patch_size=4,
            num_classes=10,
        ),
    }
)

SUBNETS = MappingProxyType(
    {
        "autoformer_tiny": SubnetConfig(
            depth=13,
            embed_dim=192,
            num_heads=(3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 3, 3),
            mlp_ratio=(3.5, 3.5, 3.0, 3.5, 3.0, 3.0, 4.0, 4.0, 3.5, 4.0, 3.5, 4.0, 3.5),
        ),
        "autoformer_small": SubnetConfig(
            depth=13,
            embed_dim=384,
            num_heads=(6, 6, 5, 7, 5, 5, 5, 6, 6, 7, 7, 6, 7),
            mlp_ratio=(3.0, 3.5, 3.0, 3.5, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 3.5, 4.0),
        ),
        "autoformer_base": SubnetConfig(
            depth=14,
            embed_dim=576,
            num_heads=(9, 9, 9, 9, 9, 10, 9, 9, 10, 9, 10, 9, 9, 10),
            mlp_ratio=(3.5, 3.5, 4.0, 3.5, 4.0, 3.5, 3.5, 3.0, 4.0, 4.0, 3.0, 4.0, 3.0, 3.5),
        ),
        "prenas_tiny_6m": SubnetConfig(
            depth=12,
            embed_dim=192,
            num_heads=(4, 4, 4, 4, 3, 3, 3, 3, 3, 4, 3, 4),
            mlp_ratio=(4.0, 4.0, 4.0, 4.0, 4.0, 3.5, 3.5, 4.0, 4.0, 3.5, 4.0, 4.0),
        ),
        "prenas_tiny_7m": SubnetConfig(
            depth=12,
            embed_dim=216,
            num_heads=(4, 4, 4, 4, 4, 3, 3, 3, 4, 4, 3, 4),
            mlp_ratio=(4.0, 3.5, 4.0, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5),
        ),
        "prenas_tiny_8m": SubnetConfig(
            depth=12,
            embed_dim=240,
            num_heads=(3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3),
            mlp_ratio=(4.0, 3.5, 4.0, 4.0, 3.5, 3.5, 3.5, 4.0, 4.0, 3.5, 4.0, 3.5),
        ),
        "prenas_tiny_9m": SubnetConfig(
            depth=12,
            embed_dim=240,
            num_heads=(4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4),
            mlp_ratio=(4.0, 4.0, 4.0, 4.0, 4.0, 3.5, 4.0, 4.0, 4.0, 3.5, 4.0, 4.0),
        ),
        "prenas_tiny_10m": SubnetConfig(
            depth=14,
            embed_dim=240,
            num_heads=(4, 4, 4, 4, 4, 3, 3, 3, 4, 4, 3, 4, 3, 4),
            mlp_ratio=(4.0, 4.0, 4.0, 4.0, 4.0, 3.5, 3.5, 4.0, 4.0, 3.5, 4.0, 3.5, 4.0, 4.0),
        ),
        "prenas_tiny_11m": SubnetConfig(
            depth=14,
            embed_dim=240,
            num_heads=(4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4),
            mlp_ratio=(4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0),
        ),
        "prenas_small_18m": SubnetConfig(
            depth=13,
            embed_dim=320,
            num_heads=(7, 7, 7, 7, 7, 7, 7, 7, 6, 7, 5, 6, 5),
            mlp_ratio=(4.0, 4.0, 3.5, 4.0, 3.5, 4.0, 4.0, 3.5, 4.0, 4.0, 3.5, 4.0, 4.0),
        ),
        "prenas_small_23m": SubnetConfig(
            depth=13,
            embed_dim=384,
            num_heads=(7, 7, 7, 7, 5, 7, 7, 5, 6, 5, 5, 6, 5),
            mlp_ratio=(4.0, 4.0, 3.5, 4.0, 3.5, 4.0, 3.5, 3.5, 4.0, 4.0, 3.0, 4.0, 3.5),
        ),
        "prenas_small_28m": SubnetConfig(
            depth=13,
            embed_dim=448,
            num_heads=(7, 7, 7, 7, 5, 7, 7, 5, 6, 5, 5, 6, 5),
            mlp_ratio=(4.0, 4.0, 3.0, 4.0, 3.0, 3.5, 3.0, 3.0, 4.0, 3.0, 3.0, 4.0, 3.0),
        ),
        "prenas_small_33m": SubnetConfig(
            depth=14,
            embed_dim=448,
            num_heads=(7, 7, 7, 7, 7, 7, 7, 7, 5, 7, 5, 6, 5, 7),
            mlp_ratio=(4.0, 4.0, 3.5, 4.0, 3.5, 4.0, 4.0, 3.5, 4.0, 4.0, 3.5, 4.0, 4.0, 3.5),
        ),
        "prenas_base_42m": SubnetConfig(
            depth=14,
            embed_dim=528,
            num_heads=(9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9),
            mlp_ratio=(3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.5, 3.0),
        ),
        "prenas_base_54m": SubnetConfig(
            depth=14,
            embed_dim=576,
            num_heads=(9, 9, 10, 9, 9, 10, 9, 9, 9, 9, 9, 9, 10, 9),
            mlp_ratio=(3.5, 4.0, 3.5, 3.5, 3.5, 4.0, 3.5, 3.5, 3.5, 3.5, 4.0, 3.0, 3.5, 4.0),
        ),
        "prenas_base_66m": SubnetConfig(
            depth=14,
            embed_dim=624,
            num_heads=(9, 10, 10, 9, 9, 10, 10, 9, 10, 9, 9, 9, 10, 10),
            mlp_ratio=(4.0, 4.0, 3.5, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0),
        ),
        # Chosen on held-out images by training.choose, see docs/nano.md.
        "autoformer_nano": SubnetConfig(
            depth=7,
            embed_dim=192,
            num_heads=(3, 3, 3, 3, 3, 2, 3),
            mlp_ratio=(4.0, 3.0, 3.5, 4.0, 4.0, 3.5, 3.0),
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What one set of weights scores.

    Args:
        top1_percent: share of images whose best answer is right.
        top5_percent: share whose five best answers hold the right one; None where not stated.
        dataset: the images.
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


CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)


CIFAR10_STD = (0.2470, 0.2435, 0.2616)


CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def find_space(name: str) -> SearchSpace:
    """Return the space of that name, or of that JSON.

    Raises:
        ValueError: it is unknown; the text has the known ones.
    """
    if name.lstrip().startswith("{"):
        return SearchSpace.from_json(name)
    if name not in SPACES:
        raise ValueError(f"space {name!r} is unknown; expected one of {', '.join(SPACES)}, or JSON")
    return SPACES[name]
