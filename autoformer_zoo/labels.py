"""Names of a classifier's outputs.

Taken from the model's `pretrained_cfg` where they stand there (CIFAR-10's for autoformer_nano),
else from the ImageNet tables that timm ships. Holds no table of its own, and never guesses: outputs
without known names are called "class 0", "class 1", ...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn


def class_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a classifier's outputs, in their order.

    Args:
        model: a classifier with timm's `num_classes` and `pretrained_cfg`.

    Returns:
        One name an output. Numbered names where the model's head is not the one that the
        `pretrained_cfg` describes, as after `reset_classifier`.
    """
    num_classes = int(getattr(model, "num_classes", 0) or 0)
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}  # timm's own mapping
    names = cfg.get("label_names") or ()
    if len(names) == num_classes > 0:
        descriptions = cfg.get("label_descriptions") or {}
        return tuple(str(descriptions.get(name, name)) for name in names)
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is not None and not names and cfg.get("num_classes") == num_classes:
        return tuple(ImageNetInfo(subset).label_descriptions())
    return tuple(f"class {i}" for i in range(num_classes))
