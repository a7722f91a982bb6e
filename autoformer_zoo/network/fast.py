"""The blocks of a network for plain inference on the CPU: the same arithmetic with fewer calls.

Between two products of a small network, whatever else is touched (modules, hooks, checks) has been
pushed out of the cache by the weights and costs ten times what it costs alone: calling all modules
takes 2 to 18 % more time. So everything is checked once before the first block, the tables of all
blocks are split at once, and GELU and the residual sums are written in place.

Nothing is kept from one call to the next but buffers: weights are read where they are, so whatever
writes to them shows in the next result. A block that is not what `block.py` made (hooks, adapters,
replaced layers, training mode) is called as the module it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from autoformer_zoo.network.attention import choose_form
from autoformer_zoo.network.block import Block, Mlp, RelPosAttention
from autoformer_zoo.network.packed_linear import PackedLinear
from autoformer_zoo.network.relpos import split_tables
from autoformer_zoo.network.workspace import augmented, is_plain_inference
from autoformer_zoo.space import HEAD_DIM

# The classes of a block's parts, in the order of `_parts`.
_LINEAR = (nn.Linear, PackedLinear)
_CLASSES: tuple[tuple[type[nn.Module], ...], ...] = (
    (nn.LayerNorm,),
    _LINEAR,
    _LINEAR,
    (nn.Dropout,),
    (nn.LayerNorm,),
    _LINEAR,
    (nn.GELU,),
    (nn.Dropout,),
    _LINEAR,
    (nn.Identity, DropPath),
)
_FORWARDS: dict[type[nn.Module], Any] = {
    kind: kind.forward for kinds in ((Block, RelPosAttention, Mlp), *_CLASSES) for kind in kinds
}
_gelu_ = torch.ops.aten.gelu_.default


def fast_blocks(
    blocks: Iterable[nn.Module], x: Tensor, grid: tuple[int, int]
) -> list[Callable[..., Tensor]]:
    """Return what to call in place of each block: a `_FastBlock` where that computes the same.

    Args:
        blocks: of the network.
        x: tokens (B, N, C) that the first block is about to get.
        grid: rows and columns of patches.

    Raises:
        ValueError: the environment variable names an unknown form of attention.
    """
    steps: list[Any] = list(blocks)
    if (
        not is_plain_inference(x, ())
        or not x.numel()
        or choose_form(x.shape[1], "cpu", False, x.dtype) != "augmented"
        or any(kind.forward is not forward for kind, forward in _FORWARDS.items())
    ):
        return steps
    plain = {i: block for i, block in enumerate(steps) if _is_plain(block, x)}
    if plain:
        tables = torch.stack([block.attn.rel_pos for block in plain.values()])  # (L, 4, R, D)
        table_k, table_v = split_tables(tables, grid)
        for i, block, k, v in zip(plain, plain.values(), table_k, table_v, strict=True):
            steps[i] = _FastBlock(block, k, v)
    return steps


@dataclass(frozen=True, slots=True)
class _FastBlock:
    """What one block computes: `block.Block` without calls of modules.

    Args:
        block: the block, whose weights are used where they are.
        table_k: its key vectors by distance, see `relpos.split_tables`.
        table_v: its value vectors by distance.
    """

    block: Block
    table_k: Tensor
    table_v: Tensor

    def __call__(self, x: Tensor, grid: tuple[int, int], shared: None = None) -> Tensor:
        """Transform x (B, N, C); grid is the rows and columns of patches."""
        B, N, _ = x.shape
        attn, mlp = self.block.attn, self.block.mlp
        heads = _linear(attn.qkv, _norm(self.block.norm1, x))
        heads = heads.view(B, N, 3, attn.num_heads, HEAD_DIM).permute(2, 0, 3, 1, 4)
        attended = augmented(heads, self.table_k, self.table_v, grid)  # (B, H, N, D)
        # What is new and private is written to and released early: 3 to 7 % of tiny's time for
        # GELU and 3 % for the rest, because memory need not be fetched again.
        del heads
        # A view: in memory it is (B, N, H, D) already.
        hidden = _linear(attn.proj, attended.transpose(1, 2).view(B, N, -1))
        del attended
        x = hidden.add_(x)
        hidden = _linear(mlp.fc1, _norm(self.block.norm2, x), gelu=True)
        return _linear(mlp.fc2, hidden).add_(x)


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return torch.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _linear(layer: nn.Linear, x: Tensor, gelu: bool = False) -> Tensor:
    if type(layer) is PackedLinear:
        return layer.run(x, gelu)
    product = F.linear(x, layer.weight, layer.bias)
    return _gelu_(product) if gelu else product


def _parts(block: Block) -> tuple[nn.Module, ...]:
    attn, mlp = block.attn, block.mlp
    attention = (block.norm1, attn.qkv, attn.proj, attn.proj_drop)
    return *attention, block.norm2, mlp.fc1, mlp.act, mlp.drop, mlp.fc2, block.drop_path


def _is_plain(block: object, x: Tensor) -> bool:
    """Return True if a block is what `block.py` made, in eval mode, without hooks."""
    if type(block) is not Block or type(block.attn) is not RelPosAttention:
        return False
    if type(block.mlp) is not Mlp or block.attn.form not in ("auto", "augmented"):
        return False
    parts = _parts(block)
    if not all(type(part) in kinds for part, kinds in zip(parts, _CLASSES, strict=True)):
        return False
    weights = [part.weight for part in parts if type(part) is nn.Linear]
    return (
        is_plain_inference(x, (block, block.attn, block.mlp, *parts))
        and block.mlp.act.approximate == "none"
        and all(type(tensor) in (Tensor, nn.Parameter) for tensor in (block.attn.rel_pos, *weights))
        and block.attn.rel_pos.dtype == x.dtype
    )
