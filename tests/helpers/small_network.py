"""A small AutoFormer in which every tensor matters, images for it, and timm's tracing."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

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


def timm_fx(model: nn.Module) -> nn.Module:
    """Trace as timm's own test suite does."""
    options = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    train_nodes, eval_nodes = get_graph_node_names(model, tracer_kwargs=options)
    return create_feature_extractor(
        model,
        train_return_nodes=[train_nodes[-1]],
        eval_return_nodes=[eval_nodes[-1]],
        tracer_kwargs=options,
    )
