"""The blocks of a network for plain inference on the CPU: the same arithmetic with fewer calls.

Between two products of a small network, whatever else is touched (modules, hooks, checks) has been
pushed out of the cache by the weights and costs ten times what it costs alone: calling all modules
takes 2 to 18 % more time. So everything is checked and looked up once before the first block, and
GELU and the residual sums are written in place.

Only buffers are kept between calls: weights are read where they are, so whatever
writes to them shows in the next result. A block that is not what `block.py` made (hooks, adapters,
replaced layers, training mode) is called as the module it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from autoformer_zoo.network.attention import choose_form
from autoformer_zoo.network.block import Block, Mlp, RelPosAttention
from autoformer_zoo.network.packed_linear import PLAIN, PackedLinear, linear
from autoformer_zoo.network.workspace import augmented, is_plain_inference
from autoformer_zoo.space import HEAD_DIM

_LINEAR = (nn.Linear, PackedLinear)
_DROP = (nn.Dropout,)
_NORM = (nn.LayerNorm,)
# The classes of the norms, the linear layers, and of what a block does not need to call.
_CLASSES: tuple[tuple[type[nn.Module], ...], ...] = (
    *(_NORM, _NORM, _LINEAR, _LINEAR, _LINEAR, _LINEAR, (nn.GELU,)),
    *(_DROP, _DROP, _DROP, (nn.Identity, DropPath)),
)
_KINDS = set(itertools.product(*_CLASSES))
_FORWARDS: dict[type[nn.Module], Any] = {
    kind: kind.forward for kinds in ((Block, RelPosAttention, Mlp), *_CLASSES) for kind in kinds
}

Norm = tuple[Any, Tensor, Tensor, float]  # as layer_norm takes it
Linear = tuple[Tensor, Tensor | None]  # weight, maybe packed, and bias


def fast_blocks(
    blocks: Iterable[nn.Module], x: Tensor, grid: tuple[int, int]
) -> list[Callable[..., Tensor]]:
    """Return what to call for each block: a `_FastBlock` if that computes the same, else the block.

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
        or choose_form(x.shape[1], "cpu", False, x.dtype, in_place=True) != "augmented"
        or any(kind.forward is not forward for kind, forward in _FORWARDS.items())
    ):
        return steps
    return [_read(block, x) or block for block in steps]


@dataclass(frozen=True, slots=True)
class _FastBlock:
    """What one block computes: `block.Block` without calls of modules, for one forward pass.

    Args:
        norms: before the attention, and before the MLP.
        linears: q, k and v at once, the projection, and the two of the MLP.
        num_heads: of the attention.
        tables: its relative position.
    """

    norms: Sequence[Norm]
    linears: Sequence[Linear]
    num_heads: int
    tables: Tensor

    def __call__(self, x: Tensor, grid: tuple[int, int], shared: None = None) -> Tensor:
        """Transform x (B, N, C); grid is the rows and columns of patches."""
        B, N, _ = x.shape
        (norm1, norm2), (qkv, proj, fc1, fc2) = self.norms, self.linears
        heads = linear(torch.layer_norm(x, *norm1), *qkv).view(B, N, 3, self.num_heads, HEAD_DIM)
        heads = heads.permute(2, 0, 3, 1, 4)  # (3, B, H, N, D)
        attended = augmented(heads, self.tables, grid)  # (B, H, N, D)
        # What is new and private is written to and released early: 3 to 7 % of tiny's time for
        # GELU and 3 % for the rest, because memory need not be fetched again.
        del heads
        # A view: in memory it is (B, N, H, D) already.
        hidden = linear(attended.transpose(1, 2).view(B, N, -1), *proj)
        del attended
        x = hidden.add_(x)
        hidden = linear(torch.layer_norm(x, *norm2), *fc1, gelu=True)
        return linear(hidden, *fc2).add_(x)


def _read(block: Any, x: Tensor) -> _FastBlock | None:
    """Collect what a block computes with; None unless it is an unmodified `Block` in eval mode.

    Done before the first block: between products each look-up costs ten times as much.
    """
    if type(block) is not Block or type(block.attn) is not RelPosAttention:
        return None
    attn, mlp = block.attn, block.mlp
    if type(mlp) is not Mlp or attn.form not in ("auto", "augmented"):
        return None
    norms, act, tables = (block.norm1, block.norm2), mlp.act, attn.rel_pos
    linears = (attn.qkv, attn.proj, mlp.fc1, mlp.fc2)
    parts = (*norms, *linears, act, attn.attn_drop, attn.proj_drop, mlp.drop, block.drop_path)
    if tuple(map(type, parts)) not in _KINDS or act.approximate != "none":
        return None
    if not is_plain_inference(x, (block, attn, mlp, *parts)) or tables.dtype != x.dtype:
        return None
    weights = [layer.packed if type(layer) is PackedLinear else layer.weight for layer in linears]
    if not all(type(tensor) in PLAIN for tensor in (tables, *weights)):
        return None  # results of a subclass may not be written to
    return _FastBlock(
        [(norm.normalized_shape, norm.weight, norm.bias, norm.eps) for norm in norms],
        [(weight, layer.bias) for weight, layer in zip(weights, linears, strict=True)],
        attn.num_heads,
        tables,
    )
