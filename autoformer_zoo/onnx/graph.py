"""The network as engines run it fastest: AutoFormer's attention, rewritten for an ONNX graph.

`export.py` exports what `rewrite_for_graph` returns; its outputs equal the network's up to
rounding. Cannot be trained.

Relative positions are a Fourier series. The table's vector at distance d is a sum of waves in d,
and a wave of j - i is a product of complex numbers, one of the query's place i and one of the key's
place j. So a logit's q . table[j - i] is two small products with constants that all blocks share,
and nothing gathers or slices by distance, which costs more than attention itself. A product of
complex numbers takes three real ones (Gauss): with coefficients a and b of cosine and sine, u and v
the query's, x and y the key's cosine and sine,

    a cos f(j - i) + b sin f(j - i) = (a + b) u (x + y) + a (v - u) y - b (u + v) x

Axes as in `vit.py`; P: the mean, and three for each wave on each axis; M: rows and columns.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoformer_zoo.network.block import PARTS, RelPosAttention, require_plain
from autoformer_zoo.network.frozen import FrozenAutoFormer
from autoformer_zoo.network.relpos import patch_marks, split_tables
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.space import HEAD_DIM, SCALE


def rewrite_for_graph(model: nn.Module) -> nn.Module:
    """Return a copy of a classifier, in eval mode, written for the graph.

    Any classifier gets a GELU that engines recognise; an AutoFormer gets another attention, for its
    input size.

    Raises:
        ValueError: an AutoFormer is frozen, or a part of it was replaced, as adapters do.
    """
    for part in model.modules():  # adapters may wrap the whole network
        if isinstance(part, FrozenAutoFormer):
            raise ValueError("a frozen model cannot be exported: give the model that was frozen")
        if isinstance(part, AutoFormer):
            require_plain(part.blocks, PARTS)
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.GELU and child.approximate == "none":
                setattr(parent, name, ErfGelu())
    if isinstance(model, AutoFormer):
        model.dynamic_img_size = False
        grid = model.patch_embed.grid_size
        shared = GridConstants(grid)
        block: Any  # what a ModuleList yields is a Module to mypy
        for block in model.blocks:
            block.attn = OnnxAttention(block.attn, grid, shared)
    return model


class ErfGelu(nn.Module):
    """The exact GELU in the order of operators that engines fuse to one."""

    def forward(self, x: Tensor) -> Tensor:
        """Activate x of any shape."""
        return x * (1 + torch.erf(x / math.sqrt(2))) * 0.5


class OnnxAttention(nn.Module):
    """A block's attention with the tables' coefficients on one grid.

    Args:
        attention: the block's attention, whose weights are copied.
        grid: rows and columns of patches.
        shared: the grid's constants.
    """

    table_k: Tensor  # (D, P)
    table_v: Tensor  # (P + 2, D)

    def __init__(
        self, attention: RelPosAttention, grid: tuple[int, int], shared: GridConstants
    ) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.shared = shared
        # The scale is a power of 2: exact here, and one multiplication of all logits less.
        scale = torch.tensor([SCALE, 1, 1]).repeat_interleave(self.num_heads * HEAD_DIM)
        weight, bias = attention.qkv.weight.detach(), attention.qkv.bias.detach()
        self.qkv = _linear(weight * scale[:, None], bias * scale)
        self.proj = _linear(attention.proj.weight.detach(), attention.proj.bias.detach())
        table_k, table_v = split_tables(attention.rel_pos.detach(), grid)
        cls_v = table_v[-1:]
        self.register_buffer("table_k", _coefficients(table_k, grid).T.contiguous())
        of_values = [_coefficients(table_v[:-1], grid), cls_v, cls_v]
        self.register_buffer("table_v", torch.cat(of_values))

    def forward(self, x: Tensor, grid: tuple[int, int], shared: Any = None) -> Tensor:
        """Attend; x and result (B, N, C), the other arguments are not used."""
        B, N, _ = x.shape
        phases, waves, marks = self.shared.phases, self.shared.waves, self.shared.marks
        P, M = phases.shape[1] - 2, marks.shape[1] - 2
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, HEAD_DIM)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, D) each
        bias = (q @ self.table_k * phases[:, :P]) @ waves[:M, :P].T  # (B, H, N, M)
        weights = (q @ k.transpose(-2, -1) + bias @ marks[:, :M].T).softmax(-1)  # (B, H, N, N)
        by_wave = weights @ marks @ waves * phases  # (B, H, N, P + 2)
        out = weights @ v + by_wave @ self.table_v  # (B, H, N, D)
        return self.proj(out.transpose(1, 2).reshape(B, N, self.num_heads * HEAD_DIM))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def _coefficients(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the factors by wave (P, D) of vectors by row distance, then by column distance."""
    mean = torch.zeros(1, table.shape[1], dtype=torch.float64)
    factors = []
    for side, vectors in zip(grid, table.double().split([2 * g - 1 for g in grid]), strict=True):
        angles = _angles(side, torch.arange(1 - side, side))  # (2G - 1, G - 1)
        mean += vectors.mean(0, keepdim=True)
        a, b = (2 / len(vectors) * wave.T @ vectors for wave in (angles.cos(), angles.sin()))
        factors += [a + b, a, b]
    return torch.cat([mean, *factors]).float()


class GridConstants(nn.Module):
    """What all blocks share on a grid of h x w patches.

    Two more waves, without a place, serve the class token: one for pairs of a patch with it, one
    for its own pairs with all tokens.

    Args:
        grid: rows and columns of patches.
    """

    phases: Tensor  # (N, P + 2): factors of each query's place
    waves: Tensor  # (M + 2, P + 2): factors of each row and column, the class token, all tokens
    marks: Tensor  # (N, M + 2): one-hot row and column, a mark for CLS, and one for all tokens

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        height, width = grid
        of_rows, of_columns = (_angles(side, torch.arange(side)) for side in grid)  # (G, G - 1)
        one = torch.ones(height * width, 1)
        by_row = _phases(of_rows).repeat_interleave(width, 0)
        by_column = _phases(of_columns).repeat(height, 1)
        # The class token's phases are zero except in the last wave.
        phases = F.pad(torch.cat([one, by_row, by_column, one], 1), (0, 1, 1, 0))
        phases[0, -1] = 1
        # The mean of both axes is counted once, with the row.
        mean = F.pad(torch.ones(height, 1), (0, 0, 0, width))
        waves = torch.cat([mean, torch.block_diag(_waves(of_rows), _waves(of_columns))], 1)
        marks = patch_marks(grid, torch.float32, torch.device("cpu"))  # (N, M + 1)
        self.register_buffer("phases", phases.float())
        self.register_buffer("waves", torch.block_diag(waves, torch.eye(2)).float())
        self.register_buffer("marks", F.pad(marks, (0, 1), value=1.0))


def _angles(side: int, places: Tensor) -> Tensor:
    """Return the angle of each place or distance, by wave: (places, G - 1)."""
    frequencies = 2 * math.pi / (2 * side - 1) * torch.arange(1, side, dtype=torch.float64)
    return places[:, None] * frequencies


def _phases(angles: Tensor) -> Tensor:
    """Return a query's factors, in the order of the coefficients a + b, a, b."""
    u, v = angles.cos(), angles.sin()
    return torch.cat([u, v - u, u + v], 1)


def _waves(angles: Tensor) -> Tensor:
    """Return a key's factors, in the same order."""
    x, y = angles.cos(), angles.sin()
    return torch.cat([x + y, y, -x], 1)
