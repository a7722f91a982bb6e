"""The augmented form of `attention.py` for the CPU without gradients: same sums, fewer copies.

At one picture and 197 tokens a block's attention takes about a millisecond, and every small
operation counts. Without autograd the operands can be written in place, and the skewed reads of
`attention._skew` are strided views instead of slices of copies. `attention.relpos_attention` calls
this; nothing else should.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from autoformer_zoo.space import HEAD_DIM

SCALE = HEAD_DIM**-0.5


@dataclass(frozen=True, slots=True)
class Constants:
    """What stays the same from picture to picture, on a grid of h x w patches.

    Args:
        table_k: key vectors by distance, transposed (D, 2h - 1 + 2w - 1).
        table_v: value vectors by distance, and that of pairs with CLS (2h - 1 + 2w, D).
        marks: one-hot row and column of each patch, a mark for CLS, and zeros (N, 1, P).
    """

    table_k: Tensor
    table_v: Tensor
    marks: Tensor


def make_constants(tables: tuple[Tensor, Tensor], marks: Tensor) -> Constants:
    """Make the constants from `attention.split_tables` and `attention.patch_marks`."""
    table_k, table_v = tables
    missing = -marks.shape[1] % 16  # to a multiple of 16 floats: full vectors in the kernel
    marks = F.pad(marks, (0, missing))[:, None]
    return Constants(table_k.T.contiguous(), table_v, marks)


def augmented(
    q: Tensor, k: Tensor, v: Tensor, constants: Constants, grid: tuple[int, int]
) -> Tensor:
    """Attend as `attention.augmented_attention`.

    Args:
        q: queries (B, H, N, D).
        k: keys (B, H, N, D).
        v: values (B, H, N, D).
        constants: see `make_constants`.
        grid: rows and columns of patches.

    Returns:
        (B, H, N, D), a view of (B, N, H, D) memory.
    """
    B, H, N, D = q.shape
    width = D + constants.marks.shape[-1]
    packed = q.new_empty(3, B, N, H, width)
    packed[0, ..., :D] = q.transpose(1, 2)
    packed[1, ..., :D] = k.transpose(1, 2)
    packed[2, ..., :D] = v.transpose(1, 2)
    packed[1:, ..., D:] = constants.marks
    packed_q = packed[0]  # (B, N, H, width)
    packed_q[..., D:] = 0  # stays so for the class token, and in the padding
    products = packed_q.view(-1, width)[:, :D] @ constants.table_k  # (B * N * H, 2h - 1 + 2w - 1)
    for source, target in zip(
        _by_position(products, (B, N, H), grid), _split_patches(packed_q, D, grid), strict=True
    ):
        target.copy_(source)
    wide_q, wide_k, wide_v = packed.transpose(2, 3).unbind(0)  # (B, H, N, width) each
    attended = F.scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=SCALE)
    attended = attended.transpose(1, 2)  # (B, N, H, width)
    by_distance = products.new_zeros(B * N * H, constants.table_v.shape[0])
    to_cls = by_distance.unflatten(0, (B, N, H))[..., -1]  # (B, N, H)
    to_cls.copy_(attended[..., D + sum(grid)])
    to_cls[:, 0] = 1  # all pairs of the class token are pairs with it
    for target, source in zip(
        _by_position(by_distance, (B, N, H), grid), _split_patches(attended, D, grid), strict=True
    ):
        target.copy_(source)
    attended = attended.reshape(B * N * H, width)[:, :D]
    return torch.addmm(attended, by_distance, constants.table_v).view(B, N, H, D).transpose(1, 2)


def _by_position(
    by_distance: Tensor, shape: tuple[int, int, int], grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """View (B * N * H, 2h - 1 + 2w - 1 + ...), by distance, by the other patch's row and column.

    The value for own row i and other row j stands at distance j - i + h - 1: one element to the
    left for each row further down, which a stride one smaller says.

    Returns:
        Views (B, h, w, H, h) and (B, h, w, H, w).
    """
    B, N, H = shape
    height, width = grid
    row = by_distance.shape[-1]  # elements of one token and head
    token = H * row
    first = by_distance.storage_offset() + token  # the first patch, after the class token
    strides = (N * token, width * token, token, row)
    rows = by_distance.as_strided(
        (B, height, width, H, height),
        (strides[0], strides[1] - 1, strides[2], strides[3], 1),
        first + height - 1,
    )
    columns = by_distance.as_strided(
        (B, height, width, H, width),
        (strides[0], strides[1], strides[2] - 1, strides[3], 1),
        first + 2 * height - 1 + width - 1,
    )
    return rows, columns


def _split_patches(tokens: Tensor, start: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """View the row and the column channels of the patches of (B, N, H, start + h + w + ...)."""
    height, width = grid
    patches = tokens[:, 1:].unflatten(1, grid)  # (B, h, w, H, ...)
    middle = start + height
    return patches[..., start:middle], patches[..., middle : middle + width]
