"""The published search spaces and models, as data: the one table of models is `MODELS`.

Sources: AutoFormer's spaces are table 1 of arXiv 2107.00651 with base's heads as released
(9, 10; the paper says 8-10), its subnets the YAML files of the official repository
(microsoft/Cream at 4a13c40). PreNAS' subnets are those of its repository (ICML 2023): the same
network and supernet shapes, one subnet for each budget in millions of parameters.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from autoformer_zoo.space import SearchSpace, SubnetConfig

SPACES: Mapping[str, SearchSpace] = MappingProxyType(
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
        # Trained by this project on CIFAR-10; its supernet is inside the package.
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

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)

SLICE_MARK = "_slice_"  # between a model's name and that of a subnet in specialization/slices.json
GENERIC = "autoformer_subnet"

# How images are prepared and classes called, under the names of timm's `pretrained_cfg`.
IMAGENET: Mapping[str, Any] = MappingProxyType(
    {
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }
)
CIFAR10: Mapping[str, Any] = MappingProxyType(
    {
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": CIFAR10_MEAN,
        "std": CIFAR10_STD,
        "label_names": CIFAR10_CLASSES,
    }
)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How many images one set of weights classifies correctly.

    Args:
        top1_percent: images whose best answer is right.
        top5_percent: images with the right answer among the five best; None if not stated.
        dataset: the images.
        by: who states it; for a measured accuracy, how it was measured.
    """

    top1_percent: float
    top5_percent: float | None
    dataset: str
    by: str


@dataclass(frozen=True, slots=True)
class WeightsSpec:
    """One set of weights of a model.

    Args:
        source: key of `weights.sources.SOURCES`; None for the supernet inside the package.
        published: accuracy stated by the authors; None if they state none for these weights.
        measured: accuracy measured with this package; None if it was not measured.
    """

    source: str | None
    published: Accuracy | None = None
    measured: Accuracy | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model of the registry.

    Args:
        space: key of `SPACES`: whose supernet it is cut from, and its input and classes.
        subnet: the architecture.
        weights: tag -> weights, the default first.
        data: entries of timm's `pretrained_cfg` that say how images are prepared.
    """

    space: str
    subnet: SubnetConfig
    weights: Mapping[str, WeightsSpec]
    data: Mapping[str, Any] = field(default_factory=lambda: IMAGENET)


def _autoformer(
    space: str, subnet: SubnetConfig, top1: float, top5: float, paper_top1: float
) -> ModelSpec:
    by = f"AutoFormer's release; the paper says {paper_top1} top-1"
    accuracy = Accuracy(top1, top5, "ImageNet-1k validation", by)
    official = WeightsSpec(f"official-{space}", accuracy)
    return ModelSpec(space, subnet, {"ms_in1k": official, "nni_in1k": WeightsSpec(f"nni-{space}")})


def _prenas(
    space: str, subnet: SubnetConfig, top1: float | None = None, top5: float | None = None
) -> ModelSpec:
    # The authors state three of the accuracies.
    stated = None if top1 is None else Accuracy(top1, top5, "ImageNet-1k validation", "PreNAS")
    return ModelSpec(space, subnet, {"in1k": WeightsSpec(f"prenas-{space}", stated)})


# A table: depth and width, then heads and MLP ratio of each block.
# fmt: off
_TINY = SubnetConfig(
    13, 192, (3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 3, 3),
    (3.5, 3.5, 3, 3.5, 3, 3, 4, 4, 3.5, 4, 3.5, 4, 3.5))
MODELS: Mapping[str, ModelSpec] = MappingProxyType({
    "autoformer_tiny": _autoformer("tiny", _TINY, 75.3, 92.7, paper_top1=74.7),
    "autoformer_small": _autoformer("small", SubnetConfig(
        13, 384, (6, 6, 5, 7, 5, 5, 5, 6, 6, 7, 7, 6, 7),
        (3, 3.5, 3, 3.5, 4, 4, 4, 4, 4, 4, 4, 3.5, 4)), 81.7, 95.7, paper_top1=81.7),
    "autoformer_base": _autoformer("base", SubnetConfig(
        14, 576, (9, 9, 9, 9, 9, 10, 9, 9, 10, 9, 10, 9, 9, 10),
        (3.5, 3.5, 4, 3.5, 4, 3.5, 3.5, 3, 4, 4, 3, 4, 3, 3.5)), 82.4, 95.7, paper_top1=82.4),
    "prenas_tiny_6m": _prenas("tiny", SubnetConfig(
        12, 192, (4, 4, 4, 4, 3, 3, 3, 3, 3, 4, 3, 4),
        (4, 4, 4, 4, 4, 3.5, 3.5, 4, 4, 3.5, 4, 4)), 77.1, 93.4),
    "prenas_tiny_7m": _prenas("tiny", SubnetConfig(
        12, 216, (4, 4, 4, 4, 4, 3, 3, 3, 4, 4, 3, 4),
        (4, 3.5, 4, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5))),
    "prenas_tiny_8m": _prenas("tiny", SubnetConfig(
        12, 240, (3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3),
        (4, 3.5, 4, 4, 3.5, 3.5, 3.5, 4, 4, 3.5, 4, 3.5))),
    "prenas_tiny_9m": _prenas("tiny", SubnetConfig(
        12, 240, (4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4),
        (4, 4, 4, 4, 4, 3.5, 4, 4, 4, 3.5, 4, 4))),
    "prenas_tiny_10m": _prenas("tiny", SubnetConfig(
        14, 240, (4, 4, 4, 4, 4, 3, 3, 3, 4, 4, 3, 4, 3, 4),
        (4, 4, 4, 4, 4, 3.5, 3.5, 4, 4, 3.5, 4, 3.5, 4, 4))),
    "prenas_tiny_11m": _prenas("tiny", SubnetConfig(
        14, 240, (4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4),
        (4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4))),
    "prenas_small_18m": _prenas("small", SubnetConfig(
        13, 320, (7, 7, 7, 7, 7, 7, 7, 7, 6, 7, 5, 6, 5),
        (4, 4, 3.5, 4, 3.5, 4, 4, 3.5, 4, 4, 3.5, 4, 4))),
    "prenas_small_23m": _prenas("small", SubnetConfig(
        13, 384, (7, 7, 7, 7, 5, 7, 7, 5, 6, 5, 5, 6, 5),
        (4, 4, 3.5, 4, 3.5, 4, 3.5, 3.5, 4, 4, 3, 4, 3.5)), 81.8, 95.9),
    "prenas_small_28m": _prenas("small", SubnetConfig(
        13, 448, (7, 7, 7, 7, 5, 7, 7, 5, 6, 5, 5, 6, 5),
        (4, 4, 3, 4, 3, 3.5, 3, 3, 4, 3, 3, 4, 3))),
    "prenas_small_33m": _prenas("small", SubnetConfig(
        14, 448, (7, 7, 7, 7, 7, 7, 7, 7, 5, 7, 5, 6, 5, 7),
        (4, 4, 3.5, 4, 3.5, 4, 4, 3.5, 4, 4, 3.5, 4, 4, 3.5))),
    "prenas_base_42m": _prenas("base", SubnetConfig(
        14, 528, (9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9),
        (3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3.5, 3))),
    "prenas_base_54m": _prenas("base", SubnetConfig(
        14, 576, (9, 9, 10, 9, 9, 10, 9, 9, 9, 9, 9, 9, 10, 9),
        (3.5, 4, 3.5, 3.5, 3.5, 4, 3.5, 3.5, 3.5, 3.5, 4, 3, 3.5, 4)), 82.6, 96.0),
    "prenas_base_66m": _prenas("base", SubnetConfig(
        14, 624, (9, 10, 10, 9, 9, 10, 10, 9, 10, 9, 9, 9, 10, 10),
        (4, 4, 3.5, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4))),
    # Chosen on held-out images by training.search.choose, see docs/nano.md.
    "autoformer_nano": ModelSpec(
        "nano", SubnetConfig(6, 160, (2, 3, 3, 3, 3, 3), (3.5, 4, 3, 4, 3, 3.5)),
        {"cifar10": WeightsSpec(None, measured=Accuracy(
            94.18, None, "CIFAR-10 test", "training.search.choose, see docs/nano.md"))},
        CIFAR10),
    # Any other subnet: `subnet=` or a file says which, the tiny one is only the default.
    GENERIC: ModelSpec("tiny", _TINY, {}),
})
# fmt: on

SUBNETS: Mapping[str, SubnetConfig] = MappingProxyType(
    {name: spec.subnet for name, spec in MODELS.items() if name != GENERIC}
)
PUBLISHED: Mapping[str, Accuracy] = MappingProxyType(
    {
        f"{name}.{tag}": weights.published
        for name, spec in MODELS.items()
        for tag, weights in spec.weights.items()
        if weights.published
    }
)
"""Accuracies that authors state, by model.tag."""


def find_model(name: str) -> tuple[str, ModelSpec, str]:
    """Return a model's name without its tag, its entry in `MODELS`, and the tag or "".

    Raises:
        ValueError: no model is called that (the text has the nearest names), or it has no such tag.
    """
    model, _, tag = name.partition(".")
    spec = MODELS.get(model)
    if spec is None:
        close = difflib.get_close_matches(model, MODELS, n=3, cutoff=0.4)
        nearest = f"the nearest are {', '.join(close)}" if close else "none is close"
        raise ValueError(
            f"no model is called {model!r}: {nearest}; autoformer_zoo.list_models() or "
            "`autoformer-zoo list` shows all"
        )
    if tag and tag not in spec.weights:
        known = ", ".join(spec.weights) or "none"
        raise ValueError(f"{model} has no tag {tag!r}; expected one of {known}")
    return model, spec, tag


def without_slice(name: str) -> str:
    """Return the name, with its tag, of the model that a slice is cut from; others as they are."""
    model, dot, tag = name.partition(".")
    return f"{model.partition(SLICE_MARK)[0]}{dot}{tag}"


def find_space(name: str) -> SearchSpace:
    """Return the space of that name, or the one that the JSON text `name` describes.

    Raises:
        ValueError: it is unknown; the text lists the known ones.
    """
    if name.lstrip().startswith("{"):
        return SearchSpace.from_json(name)
    if name not in SPACES:
        raise ValueError(f"space {name!r} is unknown; expected one of {', '.join(SPACES)}, or JSON")
    return SPACES[name]
