"""The augmented form for the CPU as one operator of a graph that torch.compile makes.

Registered when a compilation first asks for it: that takes two thirds of this package's import.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoformer_zoo.network.workspace import Constants, augmented


@torch.library.custom_op("autoformer_zoo::augmented", mutates_args=())
def augmented_operator(
    qkv: Tensor, table_k: Tensor, table_v: Tensor, marks: Tensor, height: int, width: int
) -> Tensor:
    """`augmented` as one operator of a compiled graph, less the last transpose: (B, N, H, D)."""
    return augmented(qkv, Constants(table_k, table_v, marks), (height, width)).transpose(1, 2)


@augmented_operator.register_fake
def _(
    qkv: Tensor, table_k: Tensor, table_v: Tensor, marks: Tensor, height: int, width: int
) -> Tensor:
    _, B, H, N, D = qkv.shape
    return qkv.new_empty(B, N, H, D)
