"""Relative position on a grid of patches: which table row each pair of tokens uses.

A block has four tables (4, R, D): keys by row, keys by column, values by row, values by column.
Entry `distance + 15` is for patches that far apart, clamped to -14..14; entry 0 is for all pairs
with the class token in them. Used by every form of attention, and by the ONNX graph.

Axes: N tokens (1 + height * width), D head width, R = 30 table rows.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from autoformer_zoo.space import MAX_DISTANCE, NUM_REL_POS


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
    return _table_rows(r, MAX_DISTANCE + 1), _table_rows(c, MAX_DISTANCE + 1)


def is_tracing_graph() -> bool:
    """Return True while torch.compile, torch.export or torch.jit.trace records operators."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore


def positions(grid: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the table row of each token in each place channel, and the channels of each token.

    There are P = 1 + h + 1 + w channels: the class token and the rows of the grid, then the class
    token again and the columns of the grid. A token's mark is 1 in two of them, its row's and its
    column's; so a pair of tokens gets one vector by row and one by column. On a GPU there are some
    more channels, without marks: see `pad_channels`.

    Args:
        grid: rows and columns of patches.
        like: a tensor with the device and the type of the marks.

    Returns:
        Rows of the tables by row and by column, one below the other (N, P), values in 0..2R-1;
        marks (N, P).
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        made = _positions(grid, like.dtype, like.device)
    else:
        # Graphs get the operators. What is kept is real: no fake tensor, nothing of a CUDA graph.
        is_real = type(like) is Tensor and not like.is_meta
        is_kept = is_real and not is_tracing_graph() and not _is_captured(like)
        make = _kept_positions if is_kept else _positions
        made = make(grid, like.dtype, like.device)
    return made


def _is_captured(like: Tensor) -> bool:
    """Return True if a CUDA graph is recorded: it would read what is kept after it is dropped."""
    return like.is_cuda and torch.cuda.is_current_stream_capturing()


@functools.lru_cache(maxsize=32)
def _kept_positions(
    grid: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return what all blocks need: made in each of them, it would be 25 kernels on a GPU."""
    with torch.inference_mode(False):  # else autograd could not save them for a backward pass
        made = _positions(grid, dtype, torch.device("cpu"))
        if device.type == "cpu":
            return made
        index, marks = pad_channels(made)
        # A copy from the CPU is complete when it returns, so any stream may read it.
        return index.to(device), marks.to(device)


def pad_channels(made: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Add channels without marks to `positions`, to a multiple of 8: they change no attention.

    GPUs' attention kernels take heads of whole vectors, 8 numbers of 16 bits; PyTorch copies q, k
    and v of other widths.
    """
    spare = -made[1].shape[1] % 8
    index, marks = (F.pad(each, (0, spare)) for each in made)
    return index, marks


def _positions(
    grid: tuple[int, int], dtype: torch.dtype, device: torch.device, num_rows: int = NUM_REL_POS
) -> tuple[Tensor, Tensor]:
    height, width = grid
    # The class token's place on either axis is 0, before the patches.
    r = F.pad(torch.arange(1, height + 1, device=device).repeat_interleave(width), (1, 0))  # (N,)
    c = F.pad(torch.arange(1, width + 1, device=device).repeat(height), (1, 0))  # (N,)
    rows = _table_rows(torch.arange(height, device=device), num_rows // 2)  # (h + 1, h + 1)
    columns = _table_rows(torch.arange(width, device=device), num_rows // 2)  # (w + 1, w + 1)
    row_marks = torch.eye(height + 1, dtype=dtype, device=device)[r]  # (N, h + 1)
    column_marks = torch.eye(width + 1, dtype=dtype, device=device)[c]  # (N, w + 1)
    index = torch.cat([rows[r], columns[c] + num_rows], 1)  # (N, P)
    return index, torch.cat([row_marks, column_marks], 1)


def _table_rows(places: Tensor, middle: int) -> Tensor:
    """Return the table row of each pair of places (L,), the class token first: (L + 1, L + 1)."""
    distance = (places - places[:, None]).clamp(1 - middle, middle - 1)
    return F.pad(distance + middle, (1, 0, 1, 0))


def patch_marks(grid: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the one-hot row and column of every patch, and a mark for CLS: (N, h + w + 1)."""
    height, width = grid
    rows = torch.eye(height, dtype=dtype, device=device).repeat_interleave(width, 0)  # (N - 1, h)
    columns = torch.eye(width, dtype=dtype, device=device).repeat(height, 1)  # (N - 1, w)
    cls = torch.eye(1, 1 + height * width, dtype=dtype, device=device).T  # (N, 1)
    return torch.cat([F.pad(torch.cat([rows, columns], 1), (0, 0, 1, 0)), cls], 1)


def reaching_tables(tables: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return tables (4, R', D) with a row for every distance on a grid; up to 15 x 15 unchanged."""
    if max(grid) <= MAX_DISTANCE + 1:
        return tables
    return torch.cat([tables[:, :1], _used_rows(tables, max(grid))], 1)


def split_tables(tables: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the rows of the tables that a grid uses, in the order of the distances.

    Args:
        tables: (4, R, D), a block's.
        grid: rows and columns of patches.

    Returns:
        Key vectors (2h - 1 + 2w - 1, D) for row distances 1-h..h-1, then column distances
        1-w..w-1, less the vector of the pairs with CLS; value vectors (2h - 1 + 2w, D) for the
        same distances and, last, for the pairs with CLS.
    """
    height, width = grid
    key_rows, key_columns, value_rows, value_columns = tables  # (R, D) each
    # A patch pair takes one row vector and one column vector: the shift comes off the row vector.
    shifted = _used_rows(key_rows, height) - (key_rows[:1] + key_columns[:1])
    table_k = torch.cat([shifted, _used_rows(key_columns, width)])
    # No such shift for values: it would be added and subtracted again, rounded each time.
    cls_v = value_rows[:1] + value_columns[:1]
    used = [_used_rows(value_rows, height), _used_rows(value_columns, width), cls_v]
    return table_k, torch.cat(used)


def _used_rows(table: Tensor, side: int) -> Tensor:
    """Return the rows of (..., R, D) for the distances 1-G..G-1, in this order."""
    middle = MAX_DISTANCE + 1
    if side <= middle:
        return table[..., middle - side + 1 : middle + side, :]  # (..., 2 * side - 1, D)
    distance = torch.arange(1 - side, side, device=table.device)
    return table[..., distance.clamp(-MAX_DISTANCE, MAX_DISTANCE) + middle, :]
