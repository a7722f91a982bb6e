"""A small AutoFormer in which every tensor matters, and images for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.space import SubnetConfig

CFG = SubnetConfig(depth=3, embed_dim=100, num_heads=(2, 3, 1), mlp_ratio=(3.5, 3.005, 2.0))
ONE_BLOCK = SubnetConfig(depth=1, embed_dim=64, num_heads=(2,), mlp_ratio=(2.0,))
FORMS = ("explicit", "augmented", "decomposed")
SIZE = (32, 48)  # 2 x 3 patches


def make_model(**arguments: Any) -> AutoFormer:
    torch.manual_seed(0)
    model = AutoFormer(**{"cfg": CFG, "img_size": SIZE, "num_classes": 7, **arguments})
    with torch.no_grad():
        for parameter in model.parameters():  # nothing zero or one: each tensor must be used
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def make_images(batch: int = 2, size: tuple[int, int] = SIZE, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))
