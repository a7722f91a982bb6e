"""The network as onnxruntime runs it fastest: AutoFormer's arithmetic, ordered for an ONNX graph.

Tokens come before images, and most of the network is on (N * B, C), so that linear layers become
Gemm with their bias, and attention needs no transposes. `export.py` exports what
`rewrite_for_graph` returns; its outputs equal the network's up to rounding. Cannot be trained.

Relative positions are a Fourier series. The table's vector at distance d is a sum of waves in d,
and cos f(j - i) = cos fj cos fi + sin fj sin fi, so that a logit's q . table[j - i] splits into
factors of the query's place i and of the key's place j: three small products with constants that
all blocks share, and neither gathers nor slices by distance, which cost more than attention itself.

Axes as in `vit.py`; P: waves on both axes, twice (cosines and sines), M: rows and columns.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import global_pool_nlc
from torch import Tensor, nn

from autoformer_zoo.network.block import PARTS, RelPosAttention, require_plain
from autoformer_zoo.network.relpos import patch_marks, split_tables
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.space import HEAD_DIM, SCALE


def rewrite_for_graph(model: nn.Module) -> nn.Module:
    """Return a copy of a classifier, in eval mode, written for the graph.

    Any classifier gets a GELU that onnxruntime recognises; an AutoFormer is rewritten as a whole.

    Raises:
        ValueError: a part of an AutoFormer was replaced, as adapters do.
    """
    for part in model.modules():  # adapters may wrap the whole network
        if isinstance(part, AutoFormer):
            require_plain(part.blocks, PARTS)
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
        """Classify images (B, in_chans, height, width) to logits (B, num_classes)."""
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
        # Any, not Block: what a ModuleList yields is a Module to mypy.
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.attn = OnnxAttention(block.attn, grid, shared)
        self.fc1, self.act, self.fc2 = block.mlp.fc1, block.mlp.act, block.mlp.fc2

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (N * B, C)."""
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class OnnxAttention(nn.Module):
    """A block's attention with the tables' coefficients on one grid.

    Args:
        attention: the block's attention, whose weights are copied.
        grid: rows and columns of patches.
        shared: the grid's constants.
    """

    table_k: Tensor  # (P / 2, D)
    table_v: Tensor  # (P / 2, D)
    cls_v: Tensor  # (1, D)

    def __init__(
        self, attention: RelPosAttention, grid: tuple[int, int], shared: GridConstants
    ) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.shared = shared
        weights = attention.qkv.weight.detach().chunk(3)
        biases = attention.qkv.bias.detach().chunk(3)
        # The scale is a power of 2: exact here, and one multiplication of all logits less.
        self.q = _linear(weights[0] * SCALE, biases[0] * SCALE)
        self.k, self.v = (_linear(weights[i], biases[i]) for i in (1, 2))
        self.proj = _linear(attention.proj.weight.detach(), attention.proj.bias.detach())
        table_k, table_v = split_tables(attention.rel_pos.detach(), grid)
        axes = [2 * grid[0] - 1, 2 * grid[1] - 1]
        for name, table in (("table_k", table_k), ("table_v", table_v[:-1])):
            parts = [_coefficients(part) for part in table.split(axes)]
            self.register_buffer(name, torch.cat(parts).float())
        self.register_buffer("cls_v", table_v[-1:].clone())

    def forward(self, x: Tensor) -> Tensor:
        """Attend; x and result (N * B, C), all of a token's images together."""
        shared, N = self.shared, len(self.shared.phases)
        M, P = shared.places, 2 * len(self.table_k)
        q, k, v = (layer(x).reshape(N, -1, HEAD_DIM) for layer in (self.q, self.k, self.v))
        # Cosines and sines have the same coefficients: doubled here, stored once.
        table_k = torch.cat([self.table_k, self.table_k]).T  # (D, P)
        table_v = torch.cat([self.table_v, self.table_v, self.cls_v, self.cls_v])  # (P + 2, D)
        phased = q @ table_k * shared.phases[:, None, :P]  # (N, B * H, P)
        bias = phased @ shared.waves[:M, :P].T  # (N, B * H, M)
        logits = q.transpose(0, 1) @ k.permute(1, 2, 0)  # (B * H, N, N)
        logits = logits + bias.transpose(0, 1) @ shared.marks[:, :M].T
        weights = logits.softmax(-1)
        by_wave = weights @ shared.marks @ shared.waves * shared.phases  # (B * H, N, P + 2)
        out = weights @ v.transpose(0, 1) + by_wave @ table_v  # (B * H, N, D)
        return self.proj(out.transpose(0, 1).reshape(-1, self.num_heads * HEAD_DIM))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def _coefficients(table: Tensor) -> Tensor:
    """Return the Fourier coefficients, cosines then sines, of vectors by distance: (2G - 1, D)."""
    count = len(table)
    side = (count + 1) // 2
    distances = torch.arange(1 - side, side, dtype=torch.float64)
    angles = 2 * math.pi / count * torch.arange(side)[:, None] * distances  # (G, 2G - 1)
    basis = torch.cat([angles.cos(), angles[1:].sin()])
    basis[1:] *= 2
    return basis @ table.double() / count


class GridConstants(nn.Module):
    """What all blocks share on a grid of h x w patches.

    Two more waves, without a place, serve the class token: one for pairs of a patch with it, one
    for its own pairs with all tokens.

    Args:
        grid: rows and columns of patches.
    """

    phases: Tensor  # (N, P + 2): factors of each query's place
    waves: Tensor  # (M + 2, P + 2): factors of each row and column, the class token, all tokens
    marks: Tensor  # (N, M + 2): one-hot row and column, a mark for CLS, and one for all tokens

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        height, width = grid
        by_row = [part.repeat_interleave(width, 0) for part in _phases(height)]
        by_column = [part.repeat(height, 1) for part in _phases(width)]
        patches = torch.cat([by_row[0], by_column[0], by_row[1], by_column[1]], 1)  # (N - 1, P)
        waves = _block_diagonal(_waves(height), _waves(width))  # (M, P)
        ones = torch.ones(height * width, 1)
        marks = patch_marks(grid, torch.float32, torch.device("cpu"))  # (N, M + 1)
        self.register_buffer("phases", _with_cls(torch.cat([patches, ones], 1)))
        self.register_buffer("waves", torch.block_diag(waves, torch.eye(2)).float())
        self.register_buffer("marks", F.pad(marks, (0, 1), value=1.0))

    @property
    def places(self) -> int:
        """M, the number of rows and columns."""
        return self.marks.shape[1] - 2


def _phases(side: int) -> tuple[Tensor, Tensor]:
    """Return the factors of a query's place, cos fi and sin fi: (G, 2G - 1) each.

    cos f(j - i) = cos fj cos fi + sin fj sin fi and sin f(j - i) = sin fj cos fi - cos fj sin fi:
    coefficients of cosines and of sines are multiplied with the same cos fi and sin fi.
    """
    angles = _angles(side)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos[:, 1:]], 1), torch.cat([sin, sin[:, 1:]], 1)


def _waves(side: int) -> tuple[Tensor, Tensor]:
    """Return the factors of a key's place, in the order of `_phases`."""
    cos, sin = _angles(side).cos(), _angles(side).sin()
    return torch.cat([cos, sin[:, 1:]], 1), torch.cat([sin, -cos[:, 1:]], 1)


def _angles(side: int) -> Tensor:
    """Return the angle of each place, by frequency: (G, G)."""
    unit = 2 * math.pi / (2 * side - 1)
    places = torch.arange(side, dtype=torch.float64)
    return unit * places[:, None] * places


def _block_diagonal(rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    halves = [torch.block_diag(*pair) for pair in zip(rows, columns, strict=True)]  # (M, P / 2)
    return torch.cat(halves, 1)


def _with_cls(patches: Tensor) -> Tensor:
    """Add the class token's phases, zero except in the last wave: (N, P + 2)."""
    phases = F.pad(patches, (0, 1, 1, 0))
    phases[0, -1] = 1
    return phases.float()
