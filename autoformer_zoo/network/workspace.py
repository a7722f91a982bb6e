"""The augmented form of `attention.py` for plain inference on the CPU: same sums, fewer kernels.

At one image and 197 tokens a block's attention takes about a millisecond, and each call of a kernel
costs as much as copying several thousand numbers. So the operands have a fixed place, a
`Workspace`, which holds all that is the same for every image, and whose views are made once. No
workspace holds anything derived from weights: the tables are used where they are.

The table rows that a query meets on one axis are consecutive, one row earlier for each place
further on. So what `attention.py` gathers by index is here a strided view (`_by_position`).

Axes: B batch, N tokens (1 + h * w), H heads, D head width.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as hooks_of_all_modules

from autoformer_zoo.network.relpos import patch_marks, reaching_tables
from autoformer_zoo.space import HEAD_DIM, MAX_DISTANCE, SCALE

Key = tuple[int, int, int, tuple[int, int], torch.dtype]  # B, N, H, grid, type

MAX_KEPT_BYTES = 64 * 2**20  # of all workspaces that wait for the next call


def is_plain_inference(tensor: Tensor, modules: Iterable[nn.Module] | None = None) -> bool:
    """Return True if in-place CPU kernels are safe: no autograd, tracing or functorch transform.

    With `modules`, also if calling these does nothing but their `forward` in eval mode: no hooks,
    no autocast, nothing that counts or overrides operators. All that this package reads of
    PyTorch's internal state is in this function; `test_plain_inference_reads_private_state` fails
    if a new version of PyTorch moves it.
    """
    if (
        torch.is_grad_enabled()
        or not isinstance(tensor, Tensor)  # torch.fx traces with stand-ins
        or not tensor.is_cpu
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state()
        or torch._C._functorch.peek_interpreter_stack() is not None  # vmap, jvp and the like
        or forward_ad._current_level >= 0
    ):
        return False
    if modules is None:
        return True
    if (
        torch.is_autocast_enabled("cpu")
        or torch._C._autograd._profiler_enabled()  # its count of FLOPs knows PyTorch's own products
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or hooks_of_all_modules._global_forward_hooks
        or hooks_of_all_modules._global_forward_pre_hooks
    ):
        return False
    for module in modules:
        state = module.__dict__  # 14 modules a block: nn.Module.__getattr__ would take too long
        if (
            state["training"]
            or state["_forward_hooks"]
            or state["_forward_pre_hooks"]
            or "forward" in state
            or state.get("_compiled_call_impl") is not None  # by module.compile()
        ):
            return False
    return True


def augmented(qkv: Tensor, tables: Tensor, grid: tuple[int, int]) -> Tensor:
    """Attend as `attention.augmented_attention`.

    Args:
        qkv: queries, keys and values (3, B, H, N, D).
        tables: (4, R, D), as in `attention.relpos_attention`.
        grid: rows and columns of patches.

    Returns:
        (B, H, N, D), a view of (B, N, H, D) memory.
    """
    _, B, H, N, _ = qkv.shape
    key = (B, N, H, grid, qkv.dtype)
    if type(qkv) is not Tensor:  # fake tensors must not be kept for real calls
        return Workspace(key).run(qkv, tables)
    workspace = take_workspace(key)
    out = workspace.run(qkv, tables)
    give_back(workspace)
    return out


class Workspace:
    """The operands of one call, for one shape of q, k and v and one grid."""

    def __init__(self, key: Key) -> None:
        self.key = key
        B, N, H, grid, dtype = key
        cpu = torch.device("cpu")
        marks = patch_marks(grid, dtype, cpu)  # (N, h + w + 1)
        # To a multiple of 16 floats: full vectors in the kernel.
        marks = F.pad(marks, (0, -marks.shape[1] % 16))
        self.shape, self.width = (B, N, H), HEAD_DIM + marks.shape[1]
        self.grid, middle = grid, max(MAX_DISTANCE + 1, *grid)
        rows = 2 * middle  # of a table that has every distance on the grid, and CLS at 0
        # A head's query, key and value are stored side by side: queries alone are a matrix, for
        # `mm`, and what the projection returns comes in with one copy.
        packed = marks.new_zeros(B, N, H, 3, self.width)
        packed[..., 1:, HEAD_DIM:] = marks[:, None, None]
        self.wide = packed.permute(3, 0, 2, 1, 4).unbind(0)  # (B, H, N, width) each
        self.qkv = packed[..., :HEAD_DIM].permute(3, 0, 2, 1, 4)  # (3, B, H, N, D)
        self.flat_q = packed.view(-1, 3 * self.width)[:, :HEAD_DIM]  # (B * N * H, D)
        self.products = marks.new_empty(B * N * H, 2 * rows)  # with both tables' rows
        bias_places = _patch_channels(packed[..., 0, :], grid)
        bias_sources = _by_position(self.products, self.shape, grid, middle)
        self.key_bias = tuple(zip(bias_places, bias_sources, strict=True))
        cls = HEAD_DIM + sum(grid)  # the channel of the class token
        by_cls = self.products.unflatten(0, self.shape)[:, 1:, :, ::rows]  # (B, N - 1, H, 2)
        self.cls_bias = (*by_cls.unbind(-1), packed[:, 1:, :, 0, cls])
        # Zero where a patch meets no other at that distance, and never written there.
        self.by_distance = marks.new_zeros(B * N * H, 2 * rows)
        to_cls = self.by_distance.unflatten(0, self.shape)[..., ::rows]  # (B, N, H, 2)
        to_cls[:, 0] = 1  # the class token attends to every key through table row 0
        # The kernel returns new memory each time, but always in this order.
        attended = marks.new_empty(B, N, H, self.width, device="meta")
        from_cls = attended[:, 1:, :, cls, None].expand(-1, -1, -1, 2)
        marginals = (*_patch_channels(attended, grid), from_cls)
        places = (*_by_position(self.by_distance, self.shape, grid, middle), to_cls[:, 1:])
        self.marginals = tuple(
            (place, (view.shape, view.stride(), view.storage_offset()))
            for place, view in zip(places, marginals, strict=True)
        )
        parts = (packed, self.products, self.by_distance)
        self.size_bytes = sum(part.numel() * part.element_size() for part in parts)

    def run(self, qkv: Tensor, tables: Tensor) -> Tensor:
        """Attend; arguments and result as in `augmented`."""
        tables = reaching_tables(tables, self.grid).contiguous()  # (4, R', D)
        rows, start = 2 * tables.shape[1], tables.storage_offset()
        # One operator each, for every block pays for it: keys transposed (D, 2R'), values (2R', D).
        table_k = tables.as_strided((HEAD_DIM, rows), (1, HEAD_DIM), start)
        table_v = tables.as_strided((rows, HEAD_DIM), (HEAD_DIM, 1), start + rows * HEAD_DIM)
        self.qkv.copy_(qkv)
        torch.mm(self.flat_q, table_k, out=self.products)
        for place, source in self.key_bias:
            place.copy_(source)
        by_row, by_column, place = self.cls_bias
        torch.add(by_row, by_column, out=place)
        q, k, v = self.wide
        attended = F.scaled_dot_product_attention(q, k, v, scale=SCALE)
        attended = attended.transpose(1, 2).contiguous()  # (B, N, H, width), as the kernel writes
        for place, view in self.marginals:
            place.copy_(attended.as_strided(*view))
        attended = attended.view(-1, self.width)[:, :HEAD_DIM]  # (B * N * H, D)
        out = torch.addmm(attended, self.by_distance, table_v)
        return out.view(*self.shape, HEAD_DIM).transpose(1, 2)


_lock = threading.Lock()
_waiting: list[Workspace] = []  # the longest unused first


def take_workspace(key: Key) -> Workspace:
    """Return a workspace for these shapes, for this call alone until `give_back`."""
    with _lock:
        for i in reversed(range(len(_waiting))):
            if _waiting[i].key == key:
                return _waiting.pop(i)
    with torch.inference_mode(False):  # else nothing outside it could write to the workspace
        return Workspace(key)


def give_back(workspace: Workspace) -> None:
    """Keep a workspace for a later call of any thread; drop the longest unused beyond a size."""
    with _lock:
        _waiting.append(workspace)
        while sum(kept.size_bytes for kept in _waiting) > MAX_KEPT_BYTES:
            _waiting.pop(0)


def _by_position(
    by_distance: Tensor, shape: tuple[int, int, int], grid: tuple[int, int], middle: int
) -> tuple[Tensor, Tensor]:
    """View (B * N * H, 4 * middle), by row distance and column distance, by the other's place.

    The value for own row i and other row j is stored at j - i + middle: one element to the left for
    each row further down, which is what a stride smaller by one means.

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
        first + middle,
    )
    columns = by_distance.as_strided(
        (B, height, width, H, width),
        (strides[0], strides[1], strides[2] - 1, strides[3], 1),
        first + 3 * middle,
    )
    return rows, columns


def _patch_channels(tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """View the row and the column channels of the patches of (B, N, H, D + h + w + ...)."""
    patches = tokens[:, 1:].unflatten(1, grid)  # (B, h, w, H, ...)
    middle = HEAD_DIM + grid[0]
    return patches[..., HEAD_DIM:middle], patches[..., middle : middle + grid[1]]
