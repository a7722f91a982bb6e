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
MAX_TOKENS = 1024  # beyond, weights of N x N take too much memory
# What the modules of a block call; counters of FLOPs put their own in their place.
_FUNCTIONS = (F.linear, F.gelu, F.layer_norm, F.dropout)


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
        or (F.linear, F.gelu, F.layer_norm, F.dropout) != _FUNCTIONS
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
        return _make_workspace(key).run(qkv, tables)
    workspace = take_workspace(key)
    out = workspace.run(qkv, tables)
    give_back(workspace)
    return out


class Workspace:
    """The operands of one call, for one shape of q, k and v and one grid.

    Attends by PyTorch's kernel, which takes and returns all heads of a token side by side.
    """

    def __init__(self, key: Key) -> None:
        self.key = key
        B, N, H, grid, dtype = key
        marks = patch_marks(grid, dtype, torch.device("cpu"))  # (N, h + w + 1)
        # To a multiple of 16 numbers: full vectors in the kernel.
        marks = F.pad(marks, (0, -marks.shape[1] % 16))
        self.shape, self.width = (B, N, H), HEAD_DIM + marks.shape[1]
        self.grid, middle = grid, max(MAX_DISTANCE + 1, *grid)
        rows = 2 * middle  # of a table that has every distance on the grid, and CLS at 0
        self.wide, self.attended = self._make_operands(marks)  # (3, B, H, N, width), (B, N, H, ...)
        self.wide[1:, ..., HEAD_DIM:] = marks
        self.qkv = self.wide[..., :HEAD_DIM]  # (3, B, H, N, D)
        query = self.wide[0].transpose(1, 2)  # (B, N, H, width)
        # The products are in the queries' order, which is a matrix in either.
        order = sorted(range(3), key=query.stride, reverse=True)
        self.flat_q = query.permute(*order, 3).flatten(0, 2)[:, :HEAD_DIM]  # (B * N * H, D)
        self.products = marks.new_empty(B * N * H, 2 * rows)  # with both tables' rows
        products = self.products.unflatten(0, [self.shape[i] for i in order])
        products = products.permute(*(order.index(i) for i in range(3)), 3)  # (B, N, H, 2R)
        bias_places = _patch_channels(query, grid)
        bias_sources = _by_position(products, grid, middle)
        self.key_bias = tuple(zip(bias_places, bias_sources, strict=True))
        cls = HEAD_DIM + sum(grid)  # the channel of the class token
        self.cls_bias = (*products[:, 1:, :, ::rows].unbind(-1), query[:, 1:, :, cls])
        # Zero where a patch meets no other at that distance, and never written there.
        self.by_distance = marks.new_zeros(B * N * H, 2 * rows)
        by_distance = self.by_distance.unflatten(0, self.shape)  # (B, N, H, 2R)
        to_cls = by_distance[..., ::rows]  # (B, N, H, 2)
        to_cls[:, 0] = 1  # the class token attends to every key through table row 0
        from_cls = self.attended[:, 1:, :, cls, None].expand(-1, -1, -1, 2)
        marginals = (*_patch_channels(self.attended, grid), from_cls)
        places = (*_by_position(by_distance, grid, middle), to_cls[:, 1:])
        self.marginals = tuple(
            (place, (view.shape, view.stride(), view.storage_offset()))
            for place, view in zip(places, marginals, strict=True)
        )

    @property
    def size_bytes(self) -> int:
        """Of what is kept between calls."""
        parts = (self.wide, self.products, self.by_distance)
        return sum(part.untyped_storage().nbytes() for part in parts)

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
        return self._attend(table_v).transpose(1, 2)

    def _make_operands(self, marks: Tensor) -> tuple[Tensor, Tensor]:
        """Make memory for queries, keys and values, and a stand-in for what is attended."""
        B, N, H = self.shape
        # A head's query, key and value are stored side by side: queries alone are a matrix, for
        # `mm`, and what the projection returns comes in with one copy.
        packed = marks.new_zeros(B, N, H, 3, self.width)
        # The kernel returns new memory each time, but always in this order.
        return packed.permute(3, 0, 2, 1, 4), marks.new_empty(B, N, H, self.width, device="meta")

    def _attend(self, table_v: Tensor) -> Tensor:
        """Attend to the operands in place, with the tables of values (2R', D): (B, N, H, D)."""
        q, k, v = self.wide.unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, scale=SCALE)
        attended = attended.transpose(1, 2).contiguous()  # (B, N, H, width), as the kernel writes
        self._sum_by_distance(attended)
        attended = attended.view(-1, self.width)[:, :HEAD_DIM]  # (B * N * H, D)
        return torch.addmm(attended, self.by_distance, table_v).view(*self.shape, HEAD_DIM)

    def _sum_by_distance(self, attended: Tensor) -> None:
        for place, view in self.marginals:
            place.copy_(attended.as_strided(*view))


class ProductWorkspace(Workspace):
    """Attends by two batched products and a softmax between them, one head after the other."""

    def _make_operands(self, marks: Tensor) -> tuple[Tensor, Tensor]:
        B, N, H = self.shape
        wide = marks.new_zeros(3, B, H, N, self.width)
        self.heads = wide.flatten(1, 2).unbind(0)  # (B * H, N, width) each
        self.logits = marks.new_zeros(B * H, N, N)
        self.out = marks.new_empty(B * H, N, self.width)
        return wide, self.out.view(B, H, N, self.width).transpose(1, 2)

    @property
    def size_bytes(self) -> int:
        """Of what is kept between calls."""
        return super().size_bytes + self.logits.nbytes + self.out.nbytes

    def _attend(self, table_v: Tensor) -> Tensor:
        q, k, v = self.heads
        torch.baddbmm(self.logits, q, k.transpose(1, 2), beta=0, alpha=SCALE, out=self.logits)
        torch.bmm(self.logits.softmax(-1), v, out=self.out)
        self._sum_by_distance(self.attended)
        out = torch.mm(self.by_distance, table_v).view(*self.shape, HEAD_DIM)
        return out.add_(self.attended[..., :HEAD_DIM])


def _make_workspace(key: Key) -> Workspace:
    """Return a new workspace, of the kind that was measured as the faster one.

    In bf16 on a Zen 4, at 64 channels, the kernel took 1.7 times as long as the products.
    """
    _, tokens, _, _, dtype = key
    by_products = dtype == torch.bfloat16 and tokens <= MAX_TOKENS
    return (ProductWorkspace if by_products else Workspace)(key)


_lock = threading.Lock()
_waiting: list[Workspace] = []  # the longest unused first


def take_workspace(key: Key) -> Workspace:
    """Return a workspace for these shapes, for this call alone until `give_back`."""
    with _lock:
        for i in reversed(range(len(_waiting))):
            if _waiting[i].key == key:
                return _waiting.pop(i)
    with torch.inference_mode(False):  # else nothing outside it could write to the workspace
        return _make_workspace(key)


def give_back(workspace: Workspace) -> None:
    """Keep a workspace for a later call of any thread; drop the longest unused beyond a size."""
    with _lock:
        _waiting.append(workspace)
        while sum(kept.size_bytes for kept in _waiting) > MAX_KEPT_BYTES:
            _waiting.pop(0)


def _by_position(by_distance: Tensor, grid: tuple[int, int], middle: int) -> tuple[Tensor, Tensor]:
    """View (B, N, H, 4 * middle), by row distance and column distance, by the other's place.

    The value for own row i and other row j is stored at j - i + middle: one element to the left for
    each row further down, which is what a stride smaller by one means.

    Returns:
        Views (B, h, w, H, h) and (B, h, w, H, w).
    """
    B, _, H, _ = by_distance.shape
    height, width = grid
    image, token, head, _ = by_distance.stride()
    first = by_distance.storage_offset() + token  # the first patch, after the class token
    rows = by_distance.as_strided(
        (B, height, width, H, height),
        (image, width * token - 1, token, head, 1),
        first + middle,
    )
    columns = by_distance.as_strided(
        (B, height, width, H, width),
        (image, width * token, token - 1, head, 1),
        first + 3 * middle,
    )
    return rows, columns


def _patch_channels(tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """View the row and the column channels of the patches of (B, N, H, D + h + w + ...)."""
    patches = tokens[:, 1:].unflatten(1, grid)  # (B, h, w, H, ...)
    middle = HEAD_DIM + grid[0]
    return patches[..., HEAD_DIM:middle], patches[..., middle : middle + grid[1]]
