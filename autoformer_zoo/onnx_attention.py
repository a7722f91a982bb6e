"""Relative position attention written for an ONNX graph: constants instead of tables and indices.

The sums of `attention.decomposed_attention`, for one grid, in few and plain operators: the tables
become two small matrices a block, the one-hot marks and the two lists of places are the same in
every block, so that the file needs them once. Used by `onnx_export.py` alone; cannot be trained.

Axes as in `attention.py`: B batch, H heads, N tokens (1 + height * width), C embed_dim, D head
width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoformer_zoo.attention import patch_marks, split_tables
from autoformer_zoo.attention_inference import SCALE
from autoformer_zoo.space import HEAD_DIM
from autoformer_zoo.vit import RelPosAttention


class GridConstants(nn.Module):
    """What all blocks share on a grid of h x w patches; h + w is M, 2h - 1 + 2w - 1 is R.

    Args:
        grid: rows and columns of patches.
        dtype: of the marks.
    """

    def __init__(self, grid: tuple[int, int], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        marks = patch_marks(grid, dtype, torch.device("cpu"))  # (N, M + 1)
        zero, one = torch.zeros_like(marks[:, :1]), torch.ones_like(marks[:, :1])
        self.register_buffer("marks_k", marks[:, :-1].T.contiguous())  # (M, N)
        self.register_buffer("marks_v", torch.cat([marks, zero, one], 1))  # (N, M + 3)
        distances = _distances(grid)  # (N - 1, M)
        self.register_buffer("to_position", _to_position(distances, sum(grid)))
        self.register_buffer("to_distance", _to_distance(distances, grid))


def _distances(grid: tuple[int, int]) -> Tensor:
    """Return which of the R distances each patch has to every row and every column: (N - 1, M)."""
    height, width = grid
    r = torch.arange(height).repeat_interleave(width)[:, None]  # (N - 1, 1)
    c = torch.arange(width).repeat(height)[:, None]
    by_row = torch.arange(height) - r + height - 1
    by_column = torch.arange(width) - c + width - 1 + 2 * height - 1
    return torch.cat([by_row, by_column], 1)


def _to_position(distances: Tensor, num_marks: int) -> Tensor:
    """Return where in (N, R + 1), flat, the key bias of (N, M) stands; the last column is zero."""
    width = 2 * num_marks - 2 + 1  # R + 1
    columns = torch.cat([torch.full((1, num_marks), width - 1), distances])  # (N, M)
    return (columns + width * torch.arange(len(columns))[:, None]).flatten()


def _to_distance(distances: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return where in (N, M + 3), flat, the attention of (N, R + 1) by distance stands.

    Distances that no patch has read the column of zeros. The last of the R + 1 is the attention to
    pairs with the class token: its mark's for patches, all of it, 1, for the class token itself.
    """
    num_marks = sum(grid)
    cls, zero, one = num_marks, num_marks + 1, num_marks + 2
    columns = torch.full((len(distances) + 1, 2 * num_marks - 1), zero)  # (N, R + 1)
    columns[1:].scatter_(1, distances, torch.arange(num_marks).expand_as(distances))
    columns[1:, -1] = cls
    columns[0, -1] = one
    return (columns + (num_marks + 3) * torch.arange(len(columns))[:, None]).flatten()


class OnnxAttention(nn.Module):
    """A block's attention with its tables as constants of one grid.

    Args:
        attention: the block's attention, whose weights are copied.
        grid: rows and columns of patches.
        shared: the grid's constants.
    """

    def __init__(
        self, attention: RelPosAttention, grid: tuple[int, int], shared: GridConstants
    ) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.shared = shared
        parts = attention.qkv.weight.detach().chunk(3), attention.qkv.bias.detach().chunk(3)
        self.q, self.k, self.v = (_linear(*part) for part in zip(*parts, strict=True))
        # A power of 2: exact, and one product with every logit less.
        self.q.weight.data *= SCALE
        self.q.bias.data *= SCALE
        self.proj = attention.proj
        table_k, table_v = split_tables(attention.rel_pos.detach(), grid)
        zero = torch.zeros_like(table_k[:1])
        self.register_buffer("table_k", torch.cat([table_k, zero]).T.contiguous())  # (D, R + 1)
        self.register_buffer("table_v", table_v.contiguous())  # (R + 1, D)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Attend; x and result (B, N, C). The grid is the one given when this was made."""
        N = x.shape[1]
        H, shared = self.num_heads, self.shared
        q, k, v = (
            layer(x).reshape(-1, N, H, HEAD_DIM).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )  # (B, H, N, D)
        products = (q @ self.table_k).reshape(-1, H, self.table_k.shape[1] * N)
        bias = products.index_select(2, shared.to_position).reshape(-1, H, N, len(shared.marks_k))
        weights = (q @ k.transpose(-2, -1) + bias @ shared.marks_k).softmax(-1)  # (B, H, N, N)
        marginals = (weights @ shared.marks_v).reshape(-1, H, N * shared.marks_v.shape[1])
        by_distance = marginals.index_select(2, shared.to_distance)
        by_distance = by_distance.reshape(-1, H, N, len(self.table_v))  # (B, H, N, R + 1)
        out = weights @ v + by_distance @ self.table_v  # (B, H, N, D)
        return self.proj(out.transpose(1, 2).reshape(-1, N, H * HEAD_DIM))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return layer
