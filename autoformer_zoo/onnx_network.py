"""The network as onnxruntime runs it fastest: AutoFormer's sums, in the order of an ONNX graph.

Tokens come before pictures, and most of the network is on (N * B, C), so that linear layers become
Gemm with their bias, and attention needs no transposes. `onnx_export.py` exports what
`rewrite_for_graph` returns; its outputs equal the network's up to rounding. Cannot be trained.

Axes as in `vit.py`.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from timm.models.vision_transformer import global_pool_nlc
from torch import Tensor, nn

from autoformer_zoo.onnx_attention import GridConstants, OnnxAttention
from autoformer_zoo.vit import AutoFormer


def rewrite_for_graph(model: nn.Module) -> nn.Module:
    """Return a copy of a classifier, in eval mode, written for the graph.

    Any classifier gets a GELU that onnxruntime recognises; an AutoFormer is rewritten as a whole.
    """
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.GELU and child.approximate == "none":
                setattr(parent, name, ErfGelu())
    return OnnxAutoFormer(model).eval() if isinstance(model, AutoFormer) else model


class ErfGelu(nn.Module):
    """The exact GELU in the order of operators that onnxruntime fuses to one."""

    def forward(self, x: Tensor) -> Tensor:
        """Activate x of any shape."""
        return x * (1 + torch.erf(x / math.sqrt(2))) * 0.5


class OnnxAutoFormer(nn.Module):
    """An AutoFormer for one input size.

    Args:
        model: the network, whose parts are used.
    """

    def __init__(self, model: AutoFormer) -> None:
        super().__init__()
        grid = model.patch_embed.grid_size
        shared = GridConstants(grid)
        self.patch_embed = model.patch_embed
        self.cls_token = model.cls_token
        self.pos_embed = nn.Parameter(model.pos_embed.detach().transpose(0, 1).clone())
        self.blocks = nn.ModuleList(_OnnxBlock(block, grid, shared) for block in model.blocks)
        self.norm = model.norm
        self.global_pool = model.global_pool
        self.head = model.head

    def forward(self, images: Tensor) -> Tensor:
        """Classify pictures (B, in_chans, height, width) to logits (B, num_classes)."""
        x = self.patch_embed(images).transpose(0, 1)  # (N - 1, B, C)
        x = torch.cat([self.cls_token.expand(-1, x.shape[1], -1), x]) + self.pos_embed
        N, _, C = x.shape
        x = x.reshape(-1, C)  # (N * B, C)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x).reshape(N, -1, C).transpose(0, 1)  # (B, N, C)
        return self.head(global_pool_nlc(x, self.global_pool, num_prefix_tokens=1))


class _OnnxBlock(nn.Module):
    def __init__(self, block: Any, grid: tuple[int, int], shared: GridConstants) -> None:
        super().__init__()
        # A vit.Block, which indexing a ModuleList does not say.
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.attn = OnnxAttention(block.attn, grid, shared)
        self.fc1, self.act, self.fc2 = block.mlp.fc1, block.mlp.act, block.mlp.fc2

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (N * B, C)."""
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))
