"""Relative position on a grid of patches: which table row each pair of tokens uses.

A block has four tables (4, R, D): keys by row, keys by column, values by row, values by column.
Entry `distance + 15` is for patches that far apart, clamped to -14..14; entry 0 is for all pairs
with the class token in them. Used by every form of attention, and by the ONNX graph.

Axes: N tokens (1 + height * width), D head width, R = 30 table rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from autoformer_zoo.space import MAX_DISTANCE


def relative_index(
    grid: tuple[int, int], device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return the table row of each pair of tokens, by row distance and by column distance.

    Args:
        grid: rows and columns of patches.
        device: where the result is created.

    Returns:
        Two integer tensors (N, N) with values in 0..R-1, 0 in the class token's row and column.
    """
    height, width = grid
    r = torch.arange(height, device=device).repeat_interleave(width)  # (N - 1,)
    c = torch.arange(width, device=device).repeat(height)  # (N - 1,)

    def index(position: Tensor) -> Tensor:
        distance = position[None, :] - position[:, None]
        return F.pad(distance.clamp(-MAX_DISTANCE, MAX_DISTANCE) + MAX_DISTANCE + 1, (1, 0, 1, 0))

    return index(r), index(c)


def patch_marks(grid: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the one-hot row and column of every patch, and a mark for CLS: (N, h + w + 1)."""
    height, width = grid
    rows = torch.eye(height, dtype=dtype, device=device).repeat_interleave(width, 0)  # (N - 1, h)
    columns = torch.eye(width, dtype=dtype, device=device).repeat(height, 1)  # (N - 1, w)
    cls = torch.eye(1, 1 + height * width, dtype=dtype, device=device).T  # (N, 1)
    return torch.cat([F.pad(torch.cat([rows, columns], 1), (0, 0, 1, 0)), cls], 1)


def split_tables(tables: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the rows of the tables that a grid uses, in the order of the distances.

    Args:
        tables: (..., 4, R, D); one block's, or those of many blocks stacked.
        grid: rows and columns of patches.

    Returns:
        Key vectors (..., 2h - 1 + 2w - 1, D) for row distances 1-h..h-1, then column distances
        1-w..w-1, less the vector of the pairs with CLS; value vectors (..., 2h - 1 + 2w, D) for
        the same distances and, last, for the pairs with CLS.
    """
    height, width = grid
    key_rows, key_columns, value_rows, value_columns = tables.unbind(-3)  # (..., R, D) each
    # A patch pair takes one row vector and one column vector: the shift comes off the row vector.
    shifted = _used_rows(key_rows, height) - (key_rows[..., :1, :] + key_columns[..., :1, :])
    table_k = torch.cat([shifted, _used_rows(key_columns, width)], -2)
    # No such shift for values: it would be added and subtracted again, rounded each time.
    cls_v = value_rows[..., :1, :] + value_columns[..., :1, :]
    used = [_used_rows(value_rows, height), _used_rows(value_columns, width), cls_v]
    return table_k, torch.cat(used, -2)


def _used_rows(table: Tensor, side: int) -> Tensor:
    middle = MAX_DISTANCE + 1
    if side <= middle:
        return table[..., middle - side + 1 : middle + side, :]  # (..., 2 * side - 1, D)
    distance = torch.arange(1 - side, side, device=table.device)
    return table[..., distance.clamp(-MAX_DISTANCE, MAX_DISTANCE) + middle, :]
