"""The augmented form for the CPU as one operator of a graph that torch.compile makes.

Registered when a compilation first uses it: registration takes two thirds of this package's import.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autoformer_zoo.network.workspace import augmented


@torch.library.custom_op("autoformer_zoo::augmented", mutates_args=())
def augmented_operator(
    qkv: Tensor, table_k: Tensor, table_v: Tensor, height: int, width: int
) -> Tensor:
    """`augmented` as one operator of a compiled graph, less the last transpose: (B, N, H, D)."""
    return augmented(qkv, table_k, table_v, (height, width)).transpose(1, 2)


@augmented_operator.register_fake
def _(qkv: Tensor, table_k: Tensor, table_v: Tensor, height: int, width: int) -> Tensor:
    _, B, H, N, D = qkv.shape
    return qkv.new_empty(B, N, H, D)


@augmented_operator.register_vmap
def _(
    info: Any,
    in_dims: tuple[int | None, ...],
    qkv: Tensor,
    table_k: Tensor,
    table_v: Tensor,
    height: int,
    width: int,
) -> tuple[Tensor, int]:
    if in_dims[0] is None or in_dims[1] is not None or in_dims[2] is not None:
        raise NotImplementedError("vmap over weights; compile with attention='decomposed'")
    merged = qkv.movedim(in_dims[0], 1).flatten(1, 2)  # (3, V * B, H, N, D)
    out = augmented_operator(merged, table_k, table_v, height, width)
    return out.unflatten(0, (info.batch_size, -1)), 0
