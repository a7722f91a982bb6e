"""The network written from its definition, pair by pair: slow, and easy to read."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from autoformer_zoo.space import SubnetConfig


@functools.cache
def _table_rows(grid: tuple[int, int]) -> Tensor:
    """Return the table row that each pair of tokens uses (2, N, N), by row and by column."""
    positions = [(r, c) for r in range(grid[0]) for c in range(grid[1])]
    index = torch.zeros(2, 1 + len(positions), 1 + len(positions), dtype=torch.long)
    for i, own in enumerate(positions, 1):
        for j, other in enumerate(positions, 1):
            for axis in (0, 1):
                index[axis, i, j] = min(max(other[axis] - own[axis], -14), 14) + 15
    return index


def defined_attention(
    q: Tensor, k: Tensor, v: Tensor, tables: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Attend (B, H, N, D) with the relative vectors of each pair of tokens written out."""
    rows, columns = _table_rows(grid)
    key_rows, key_columns, value_rows, value_columns = tables
    keys = k.unsqueeze(2) + key_rows[rows] + key_columns[columns]  # (B, H, N, N, D)
    values = v.unsqueeze(2) + value_rows[rows] + value_columns[columns]  # (B, H, N, N, D)
    logits = (q.unsqueeze(3) * keys).sum(-1) / 8  # (B, H, N, N)
    return (logits.softmax(-1).unsqueeze(-1) * values).sum(3)


def defined_network(x: Tensor, state: dict[str, Tensor], cfg: SubnetConfig) -> Tensor:
    """Run the network as the paper defines it, from a state dict, by plain tensor operations."""

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        scaled = centred / (variance + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    batch, channels, height, width = x.shape
    kernel = state["patch_embed.proj.weight"]
    patch = kernel.shape[-1]
    grid = (height // patch, width // patch)
    patches = x.reshape(batch, channels, grid[0], patch, grid[1], patch).permute(0, 2, 4, 1, 3, 5)
    tokens = patches.reshape(batch, grid[0] * grid[1], -1) @ kernel.flatten(1).T
    tokens = tokens + state["patch_embed.proj.bias"]
    x = torch.cat([state["cls_token"].repeat(batch, 1, 1), tokens], 1) + state["pos_embed"]
    for i, heads in enumerate(cfg.num_heads):
        block = f"blocks.{i}."
        qkv = linear(norm(x, f"{block}norm1"), f"{block}attn.qkv")
        q, k, v = (part.unflatten(2, (heads, 64)).transpose(1, 2) for part in qkv.chunk(3, -1))
        attended = defined_attention(q, k, v, state[f"{block}attn.rel_pos"], grid)
        x = x + linear(attended.transpose(1, 2).flatten(2), f"{block}attn.proj")
        assert state[f"{block}mlp.fc1.weight"].shape[0] == int(cfg.embed_dim * cfg.mlp_ratio[i])
        hidden = linear(norm(x, f"{block}norm2"), f"{block}mlp.fc1")
        x = x + linear(hidden * (1 + torch.erf(hidden / 2**0.5)) / 2, f"{block}mlp.fc2")
    return linear(norm(x, "norm")[:, 1:].mean(1), "head")
