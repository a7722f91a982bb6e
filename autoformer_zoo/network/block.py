"""One transformer block, by the definition: attention with relative position, then an MLP.

`vit.py` stacks it; `fast.py` computes the same with fewer calls where only the result is needed.
Source: arXiv 2107.00651, section 3, and microsoft/Cream@4a13c40 (AutoFormer/model).
Pre-norm, heads that are always 64 wide whatever the width, LayerNorm eps 1e-5.

Axes: B batch, N tokens (1 + height * width), C embed_dim, H heads, D = 64 head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models import register_notrace_module
from torch import Tensor, nn

from autoformer_zoo.network.attention import (
    AttentionForm,
    apply_weights,
    attention_weights,
    check_form,
    relpos_attention,
)
from autoformer_zoo.network.packed_linear import PLAIN, linear
from autoformer_zoo.network.workspace import is_plain_inference
from autoformer_zoo.space import HEAD_DIM, NUM_REL_POS

torch.fx.wrap("relpos_attention")  # a leaf: traced, it would choose one form for all calls

_LINEAR, _GELU = nn.Linear.forward, nn.GELU.forward  # to see later if they were patched
LayerNorm = partial(nn.LayerNorm, eps=1e-5)  # PyTorch's default, as upstream; timm's ViT has 1e-6


def has_hooks(module: nn.Module) -> bool:
    """Return True if a call of the module runs hooks."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


@register_notrace_module
class RelPosAttention(nn.Module):
    """Multi-head self-attention with relative position: a leaf for torch.fx."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        form: AttentionForm = "auto",
        **factory: Any,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, HEAD_DIM
        # Called only where a hook asks for the weights; `relpos_attention` has the same dropout.
        self.attn_drop = nn.Dropout(attn_drop)
        self.form = check_form(form)
        self.qkv = nn.Linear(embed_dim, 3 * num_heads * HEAD_DIM, **factory)
        self.proj = nn.Linear(num_heads * HEAD_DIM, embed_dim, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        # Keys by row, keys by column, values by row, values by column.
        self.rel_pos = nn.Parameter(torch.empty(4, NUM_REL_POS, HEAD_DIM, **factory))
        if self.rel_pos.device.type != "meta":
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the tables as upstream does; the projections reset themselves."""
        trunc_normal_(self.rel_pos, std=0.02)

    def forward(
        self, x: Tensor, grid: tuple[int, int], shared: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Attend; x and result (B, N, C), the others as in `relpos_attention`."""
        B, N, _ = x.shape
        qkv = self.qkv(x) if torch.jit.is_scripting() else _apply(self.qkv, x)  # type: ignore
        qkv = qkv.reshape(B, N, 3, self.num_heads, self.head_dim)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, B, H, N, D)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            pass  # has no hooks, and does not compile the other branch
        elif has_hooks(self.attn_drop):
            return self._project(self._shown(qkv, grid))
        dropout = self.attn_drop.p if self.training else 0.0
        return self._project(relpos_attention(qkv, self.rel_pos, grid, dropout, self.form, shared))

    def _shown(self, qkv: Tensor, grid: tuple[int, int]) -> Tensor:
        """Attend by the explicit form, and show the weights to the hooks of `attn_drop`."""
        q, k, v = qkv.unbind(0)
        weights = self.attn_drop(attention_weights(q, k, self.rel_pos, grid))  # (B, H, N, N)
        return apply_weights(weights, v, self.rel_pos, grid)

    def _project(self, x: Tensor) -> Tensor:
        B, _, N, _ = x.shape  # (B, H, N, D)
        x = x.transpose(1, 2).reshape(B, N, self.num_heads * self.head_dim)
        x = self.proj(x) if torch.jit.is_scripting() else _apply(self.proj, x)  # type: ignore
        return self.proj_drop(x)


@register_notrace_module
class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between them: a leaf for timm's torch.fx."""

    def __init__(self, embed_dim: int, hidden_dim: int, drop: float, **factory: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim, **factory)
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden_dim, embed_dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (B, N, C) token by token."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
        return self.drop(_apply(self.fc2, self.drop(_apply(self.fc1, x, self.act))))


def _apply(layer: nn.Module, x: Tensor, act: nn.Module | None = None) -> Tensor:
    """Call a linear layer and maybe a GELU; in plain inference by the products of `fast.py`.

    Another library's products round differently: hooks on a block, or tracing it, would change the
    last bits of the result.
    """
    parts = [part for part in (layer, act) if part is not None]
    is_exact = act is None or (type(act) is nn.GELU and act.approximate == "none")
    if (
        type(layer) is nn.Linear
        and is_exact
        and is_plain_inference(x, parts)
        and type(layer.weight) in PLAIN
        and nn.Linear.forward is _LINEAR
        and (act is None or nn.GELU.forward is _GELU)
    ):
        return linear(x, layer.weight, layer.bias, gelu=act is not None)
    x = layer(x)
    return x if act is None else act(x)


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hidden_dim: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        form: AttentionForm = "auto",
        **factory: Any,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(embed_dim, **factory)
        self.attn = RelPosAttention(embed_dim, num_heads, attn_drop, proj_drop, form, **factory)
        self.norm2 = LayerNorm(embed_dim, **factory)
        self.mlp = Mlp(embed_dim, hidden_dim, proj_drop, **factory)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(
        self, x: Tensor, grid: tuple[int, int], shared: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Transform x (B, N, C); the other arguments as in `relpos_attention`."""
        x = x + self.drop_path(self.attn(self.norm1(x), grid, shared))
        return x + self.drop_path(self.mlp(self.norm2(x)))


PARTS: dict[str, type[nn.Module]] = {  # of a block, by name
    "": Block,
    "attn": RelPosAttention,
    "attn.qkv": nn.Linear,
    "attn.proj": nn.Linear,
    "mlp": Mlp,
}


def require_plain(blocks: nn.Module, parts: Mapping[str, type[nn.Module]]) -> None:
    """Raise ValueError if a part of a block was replaced by what computes something else."""
    for name, module in blocks.named_modules():
        expected = parts.get(name.partition(".")[2]) if name else None
        if expected is not None and type(module).forward is not expected.forward:
            found = (
                f"{type(module).__module__}.{type(module).__qualname__}"  # peft has a Linear too
            )
            raise ValueError(
                f"blocks.{name} is a {found}; expected a plain {expected.__name__}: "
                "merge adapters such as LoRA into the weights first"
            )
