"""The augmented form of `attention.py` for the CPU without gradients: same sums, fewer operations.

At one image and 197 tokens a block's attention takes about a millisecond, and each call of an
operation costs as much as copying several thousand numbers. So the operands have a fixed place, a
`Workspace`, in which all that never changes already stands, and whose views are made once. The
skewed reads of `attention._skew` are strided views too. `attention.relpos_attention` and
`plan.py` call this, and compiled graphs through `compiled.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from autoformer_zoo.space import HEAD_DIM, SCALE

MOST_KEPT_BYTES = 64 * 2**20  # of all workspaces that wait for the next call


@dataclass(frozen=True, slots=True)
class Constants:
    """What stays the same from image to image, on a grid of h x w patches.

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


class Workspace:
    """The operands of one call, for one shape of q, k and v and one grid.

    Args:
        shape: (B, N, H).
        grid: rows and columns of patches.
        constants: see `make_constants`; its marks stay in the workspace.
    """

    def __init__(
        self, shape: tuple[int, int, int], grid: tuple[int, int], constants: Constants
    ) -> None:
        B, N, H = shape
        self.shape, self.grid, self.dtype = shape, grid, constants.marks.dtype
        self.width = HEAD_DIM + constants.marks.shape[-1]
        like = constants.marks
        # A head's query, key and value lie side by side: queries alone are a matrix, for `mm`, and
        # what the projection returns comes in with one copy.
        packed = like.new_zeros(B, N, H, 3, self.width)
        packed[..., 1:, HEAD_DIM:] = constants.marks.unsqueeze(2)
        self.wide = packed.permute(3, 0, 2, 1, 4).unbind(0)  # (B, H, N, width) each
        self.qkv = packed[..., :HEAD_DIM].permute(3, 0, 2, 1, 4)  # (3, B, H, N, D)
        self.flat_q = packed.view(-1, 3 * self.width)[:, :HEAD_DIM]  # (B * N * H, D)
        self.products = like.new_empty(B * N * H, constants.table_k.shape[1])
        bias_places = _patch_channels(packed[..., 0, :], grid)
        self.key_bias = tuple(
            zip(bias_places, _by_position(self.products, shape, grid), strict=True)
        )
        # Zero where a patch meets no other at that distance, and never written there.
        self.by_distance = like.new_zeros(B * N * H, constants.table_v.shape[0])
        to_cls = self.by_distance.unflatten(0, shape)[..., -1]  # (B, N, H)
        to_cls[:, 0] = 1  # all pairs of the class token are pairs with it
        # The kernel returns new memory each time, but always in this order.
        attended = like.new_empty(B, N, H, self.width, device="meta")
        marginals = (*_patch_channels(attended, grid), attended[:, 1:, :, HEAD_DIM + sum(grid)])
        self.marginals = tuple(
            (place, (view.shape, view.stride(), view.storage_offset()))
            for place, view in zip(
                (*_by_position(self.by_distance, shape, grid), to_cls[:, 1:]),
                marginals,
                strict=True,
            )
        )
        parts = (packed, self.products, self.by_distance)
        self.size_bytes = sum(part.numel() * part.element_size() for part in parts)

    def run(self, qkv: Tensor, constants: Constants) -> Tensor:
        """Attend; arguments and result as in `augmented`."""
        self.qkv.copy_(qkv)
        torch.mm(self.flat_q, constants.table_k, out=self.products)
        for place, source in self.key_bias:
            place.copy_(source)
        q, k, v = self.wide
        attended = F.scaled_dot_product_attention(q, k, v, scale=SCALE)
        attended = attended.transpose(1, 2).contiguous()  # (B, N, H, width), as the kernel writes
        for place, view in self.marginals:
            place.copy_(attended.as_strided(*view))
        attended = attended.view(-1, self.width)[:, :HEAD_DIM]  # (B * N * H, D)
        out = torch.addmm(attended, self.by_distance, constants.table_v)
        return out.view(*self.shape, HEAD_DIM).transpose(1, 2)


class WorkspacePool:
    """Keeps workspaces between calls; each call has one to itself, whatever thread it is in."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._lock = threading.Lock()
        self._waiting: list[tuple[Hashable, Workspace]] = []  # the longest unused first

    def take(self, key: Hashable) -> Workspace | None:
        """Hand out the workspace last given back under this key, if there is one."""
        with self._lock:
            for i in reversed(range(len(self._waiting))):
                if self._waiting[i][0] == key:
                    return self._waiting.pop(i)[1]
        return None

    def give_back(self, key: Hashable, workspace: Workspace) -> None:
        """Keep a workspace; lets go of the longest unused ones where they are too many."""
        with self._lock:
            self._waiting.append((key, workspace))
            while sum(waiting.size_bytes for _, waiting in self._waiting) > self.most_bytes:
                self._waiting.pop(0)


_pool = WorkspacePool(MOST_KEPT_BYTES)


def take_workspace(
    shape: tuple[int, int, int], grid: tuple[int, int], constants: Constants
) -> Workspace:
    """Hand out a workspace for (B, N, H), a waiting one or a new one; see `give_back`."""
    if torch._C._len_torch_dispatch_stack():  # fake tensors and the like must not be kept
        return Workspace(shape, grid, constants)
    workspace = _pool.take((shape, grid, constants.marks.dtype))
    if workspace is None:
        with torch.inference_mode(False):  # else nothing outside it could write to the workspace
            workspace = Workspace(shape, grid, constants)
    return workspace


def give_back(workspace: Workspace) -> None:
    """Keep a workspace that is no longer needed for the next call."""
    if not torch._C._len_torch_dispatch_stack():
        _pool.give_back((workspace.shape, workspace.grid, workspace.dtype), workspace)


def augmented(qkv: Tensor, constants: Constants, grid: tuple[int, int]) -> Tensor:
    """Attend as `attention.augmented_attention`.

    Args:
        qkv: queries, keys and values (3, B, H, N, D).
        constants: see `make_constants`.
        grid: rows and columns of patches.

    Returns:
        (B, H, N, D), a view of (B, N, H, D) memory.
    """
    _, B, H, N, _ = qkv.shape
    workspace = take_workspace((B, N, H), grid, constants)
    out = workspace.run(qkv, constants)
    give_back(workspace)
    return out


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


def _patch_channels(tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """View the row and the column channels of the patches of (B, N, H, D + h + w + ...)."""
    patches = tokens[:, 1:].unflatten(1, grid)  # (B, h, w, H, ...)
    middle = HEAD_DIM + grid[0]
    return patches[..., HEAD_DIM:middle], patches[..., middle : middle + grid[1]]
