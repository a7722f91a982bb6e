"""Relative position attention written for an ONNX graph: few plain operators, no index.

The sums of `attention.decomposed_attention` for one grid. What differs is how a product with a
distance's vector gets to the place of the other patch. In torch that is a strided view; ONNX has
none, and gathers or slices cost as much as the attention. A table over the 2g - 1 distances of an
axis with g places is a sum of g cosines and g - 1 sines, and the sine or cosine of a difference of
places is a sum of products of those of the two places (a discrete Fourier transform, exact up to
rounding). So a query is multiplied with the coefficients, by number with its own place's phases,
and with the other places' waves: two products with constants that all blocks share.

`onnx_network.py` alone uses this. Axes as in `attention.py` (B batch, H heads, N tokens, C
embed_dim, D head width, G grid side), M = h + w marks, P = 2 (2h - 1 + 2w - 1) waves. Tokens come
first, (N, B * H, D), so that onnxruntime reads q, k and v in place instead of transposing them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoformer_zoo.attention import patch_marks, split_tables
from autoformer_zoo.attention_inference import SCALE
from autoformer_zoo.block import RelPosAttention
from autoformer_zoo.space import HEAD_DIM


class GridConstants(nn.Module):
    """What all blocks share on a grid of h x w patches.

    For the class token there are two more waves, without a place: one for what patches give to it,
    and one for what it gives to all.

    Args:
        grid: rows and columns of patches.
    """

    phases: Tensor  # (N, P + 2): of each query's place
    waves: Tensor  # (M + 2, P + 2): of each row, each column, the class token, everything
    marks: Tensor  # (N, M + 2): one-hot row and column, a mark for CLS, and one for everything

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        height, width = grid
        by_row = [part.repeat_interleave(width, 0) for part in _phases(height)]
        by_column = [part.repeat(height, 1) for part in _phases(width)]
        patches = torch.cat([by_row[0], by_column[0], by_row[1], by_column[1]], 1)  # (N - 1, P)
        waves = _block_diagonal(_waves(height), _waves(width))  # (M, P)
        ones = torch.ones(height * width, 1)
        marks = patch_marks(grid, torch.float32, torch.device("cpu"))  # (N, M + 1)
        self.register_buffer("phases", _with_cls(torch.cat([patches, ones], 1)))
        self.register_buffer("waves", torch.block_diag(waves, torch.eye(2)).float())
        self.register_buffer("marks", F.pad(marks, (0, 1), value=1.0))

    @property
    def places(self) -> int:
        """M, the number of rows and columns."""
        return self.marks.shape[1] - 2


def _angles(side: int) -> Tensor:
    """Return the angle of each place, by frequency: (G, G)."""
    unit = 2 * math.pi / (2 * side - 1)
    places = torch.arange(side, dtype=torch.float64)
    return unit * places[:, None] * places


def _phases(side: int) -> tuple[Tensor, Tensor]:
    """Return what a query's place multiplies coefficients with: (G, 2G - 1), twice.

    cos f(j - i) = cos fj cos fi + sin fj sin fi and sin f(j - i) = sin fj cos fi - cos fj sin fi:
    coefficients of cosines and of sines meet the same cos fi, and the same sin fi.
    """
    angles = _angles(side)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos[:, 1:]], 1), torch.cat([sin, sin[:, 1:]], 1)


def _waves(side: int) -> tuple[Tensor, Tensor]:
    """Return what the other place's waves are, in the order of `_phases`."""
    cos, sin = _angles(side).cos(), _angles(side).sin()
    return torch.cat([cos, sin[:, 1:]], 1), torch.cat([sin, -cos[:, 1:]], 1)


def _block_diagonal(rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    halves = [torch.block_diag(*pair) for pair in zip(rows, columns, strict=True)]  # (M, P / 2)
    return torch.cat(halves, 1)


def _with_cls(patches: Tensor) -> Tensor:
    """Add the class token's phases, all zero but for everything's: (N, P + 2)."""
    phases = F.pad(patches, (0, 1, 1, 0))
    phases[0, -1] = 1
    return phases.float()


def _coefficients(table: Tensor) -> Tensor:
    """Return cosines' and sines' coefficients of vectors by distance: (2G - 1, D), both."""
    count = len(table)
    side = (count + 1) // 2
    distances = torch.arange(1 - side, side, dtype=torch.float64)
    angles = 2 * math.pi / count * torch.arange(side)[:, None] * distances  # (G, 2G - 1)
    basis = torch.cat([angles.cos(), angles[1:].sin()])
    basis[1:] *= 2
    return basis @ table.double() / count


class OnnxAttention(nn.Module):
    """A block's attention with the tables' coefficients on one grid.

    Args:
        attention: the block's attention, whose weights are copied.
        grid: rows and columns of patches.
        shared: the grid's constants.
    """

    table_k: Tensor  # (P / 2, D)
    table_v: Tensor  # (P / 2, D)
    cls_v: Tensor  # (1, D)

    def __init__(
        self, attention: RelPosAttention, grid: tuple[int, int], shared: GridConstants
    ) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.shared = shared
        weights = attention.qkv.weight.detach().chunk(3)
        biases = attention.qkv.bias.detach().chunk(3)
        # The scale is a power of 2: exact, and one product with every logit less.
        self.q = _linear(weights[0] * SCALE, biases[0] * SCALE)
        self.k, self.v = (_linear(weights[i], biases[i]) for i in (1, 2))
        self.proj = _linear(attention.proj.weight.detach(), attention.proj.bias.detach())
        table_k, table_v = split_tables(attention.rel_pos.detach(), grid)
        axes = [2 * grid[0] - 1, 2 * grid[1] - 1]
        for name, table in (("table_k", table_k), ("table_v", table_v[:-1])):
            parts = [_coefficients(part) for part in table.split(axes)]
            self.register_buffer(name, torch.cat(parts).float())
        self.register_buffer("cls_v", table_v[-1:].clone())

    def forward(self, x: Tensor) -> Tensor:
        """Attend; x and result (N * B, C), all of a token's pictures together."""
        shared, N = self.shared, len(self.shared.phases)
        M, P = shared.places, 2 * len(self.table_k)
        q, k, v = (layer(x).reshape(N, -1, HEAD_DIM) for layer in (self.q, self.k, self.v))
        # Both halves of the phases meet the same coefficients; doubled here, stored once.
        table_k = torch.cat([self.table_k, self.table_k]).T  # (D, P)
        table_v = torch.cat([self.table_v, self.table_v, self.cls_v, self.cls_v])  # (P + 2, D)
        phased = q @ table_k * shared.phases[:, None, :P]  # (N, B * H, P)
        bias = phased @ shared.waves[:M, :P].T  # (N, B * H, M)
        logits = q.transpose(0, 1) @ k.permute(1, 2, 0)  # (B * H, N, N)
        logits = logits + bias.transpose(0, 1) @ shared.marks[:, :M].T
        weights = logits.softmax(-1)
        by_wave = weights @ shared.marks @ shared.waves * shared.phases  # (B * H, N, P + 2)
        out = weights @ v.transpose(0, 1) + by_wave @ table_v  # (B * H, N, D)
        return self.proj(out.transpose(0, 1).reshape(-1, self.num_heads * HEAD_DIM))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer
