"""The optimizer: timm's, with the right parameters in the right groups."""

from __future__ import annotations

from functools import partial

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from autoformer_zoo.vit import AutoFormer
from training.config import TrainConfig


def make_optimizer(model: AutoFormer, config: TrainConfig) -> torch.optim.Optimizer:
    """Make the optimizer of a network's trainable parameters.

    Weight decay leaves norms, biases, position embedding, class token and relative position tables
    alone. Upstream decays the tables: its pattern for them matches no parameter; the decay rule
    "upstream" does the same.

    Args:
        model: the network.
        config: optimizer, learning rate, weight decay, layer decay.

    Raises:
        ValueError: the optimizer is unknown, or nothing is left to train.
    """
    kept = (
        {"pos_embed", "cls_token"} if config.decay_rule == "upstream" else model.no_weight_decay()
    )
    arguments = {"weight_decay": config.weight_decay, "no_weight_decay_list": tuple(kept)}
    if config.layer_decay < 1:
        groups = partial(param_groups_layer_decay, layer_decay=config.layer_decay, **arguments)
    else:
        groups = partial(param_groups_weight_decay, **arguments)
    fused = {"fused": True} if config.opt == "adamw" else {}  # a tenth of a small step otherwise
    return create_optimizer_v2(model, opt=config.opt, lr=config.lr, param_group_fn=groups, **fused)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all groups, each with its layer's factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def clip(network: nn.Module, largest: float) -> float:
    """Scale the gradient down to a largest norm, 0 for any, and return its norm before."""
    parameters = network.parameters()
    return nn.utils.clip_grad_norm_(parameters, largest or float("inf")).item()
