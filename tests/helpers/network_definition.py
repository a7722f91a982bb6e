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


def _defined_attention(
    x: Tensor, weights: dict[str, Tensor], heads: int, grid: tuple[int, int]
) -> Tensor:
    """Attend head by head, with the relative vectors of each pair of tokens written out."""
    index = _table_rows(grid)
    key_rows, key_columns, value_rows, value_columns = weights["rel_pos"]
    relative_k = key_rows[index[0]] + key_columns[index[1]]  # (N, N, D)
    relative_v = value_rows[index[0]] + value_columns[index[1]]  # (N, N, D)
    thirds = zip(weights["qkv.weight"].chunk(3), weights["qkv.bias"].chunk(3), strict=True)
    q, k, v = (x @ weight.T + bias for weight, bias in thirds)  # (B, N, 64 * heads)
    outputs = []
    for head in range(heads):
        part = slice(64 * head, 64 * head + 64)
        keys = k[..., part].unsqueeze(1) + relative_k  # (B, N, N, D)
        values = v[..., part].unsqueeze(1) + relative_v  # (B, N, N, D)
        logits = (q[..., part].unsqueeze(2) * keys).sum(-1) / 8  # (B, N, N)
        outputs.append((logits.softmax(-1).unsqueeze(-1) * values).sum(2))
    return torch.cat(outputs, -1) @ weights["proj.weight"].T + weights["proj.bias"]


def defined_network(x: Tensor, state: dict[str, Tensor], cfg: SubnetConfig) -> Tensor:
    """Run the network as the paper defines it, from a state dict, by plain tensor operations."""

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        scaled = centred / (variance + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    batch, channels, height, width = x.shape
    grid = (height // 16, width // 16)
    patches = x.reshape(batch, channels, grid[0], 16, grid[1], 16).permute(0, 2, 4, 1, 3, 5)
    kernel = state["patch_embed.proj.weight"].flatten(1)
    tokens = patches.reshape(batch, -1, channels * 256) @ kernel.T + state["patch_embed.proj.bias"]
    x = torch.cat([state["cls_token"].repeat(batch, 1, 1), tokens], 1) + state["pos_embed"]
    for i in range(cfg.depth):
        block = part(f"blocks.{i}.")
        attn = {k.removeprefix("attn."): v for k, v in block.items()}
        x = x + _defined_attention(norm(x, f"blocks.{i}.norm1"), attn, cfg.num_heads[i], grid)
        assert block["mlp.fc1.weight"].shape[0] == int(cfg.embed_dim * cfg.mlp_ratio[i])
        hidden = norm(x, f"blocks.{i}.norm2") @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"]
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        x = x + hidden @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"]
    pooled = norm(x, "norm")[:, 1:].sum(1) / (grid[0] * grid[1])
    return pooled @ state["head.weight"].T + state["head.bias"]
