"""Make upstream-shaped state dicts and the inputs of the golden data, by rule.

Names and shapes are written out here, apart from the package's own tables, so that tests hold one
against the other.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoformer_zoo.space import SubnetConfig

GOLDEN = Path(__file__).parents[1] / "golden"


def golden_json(case: str) -> Any:
    return json.loads((GOLDEN / f"{case}.json").read_text())


def uniform(depth: int, embed_dim: int, num_heads: int, mlp_ratio: float = 4.0) -> SubnetConfig:
    return SubnetConfig(depth, embed_dim, (num_heads,) * depth, (mlp_ratio,) * depth)


def fill(salt: str, name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the golden data's weight of this upstream name."""
    random = np.random.RandomState(zlib.crc32((salt + name).encode()))
    a = random.standard_normal(shape).astype(np.float32)
    if "norm" in name and name.endswith("weight"):
        return torch.from_numpy(1 + np.float32(0.1) * a)
    if name.endswith("bias"):
        return torch.from_numpy(np.float32(0.1) * a)
    return torch.from_numpy(np.float32(0.3 if "embeddings_table" in name else 0.04) * a)


def images(seed: int, batch: int, img_size: int) -> Tensor:
    shape = (batch, 3, img_size, img_size)
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def official_state(
    sizes: SubnetConfig,
    img_size: int = 32,
    num_classes: int = 5,
    salt: str = "",
    patch_size: int = 16,
    in_chans: int = 3,
) -> dict[str, Tensor]:
    """Return a state dict as official and PreNAS supernets have it, filled by the rule."""
    shapes = official_shapes(sizes, img_size, num_classes, patch_size, in_chans)
    return {name: fill(salt, name, shape) for name, shape in shapes.items()}


def official_shapes(
    sizes: SubnetConfig,
    img_size: int = 32,
    num_classes: int = 5,
    patch_size: int = 16,
    in_chans: int = 3,
) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of official and PreNAS supernets."""
    width, tokens = sizes.embed_dim, 1 + (img_size // patch_size) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, tokens, width),
        "cls_token": (1, 1, width),
        "patch_embed_super.proj.weight": (width, in_chans, patch_size, patch_size),
        "patch_embed_super.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (num_classes, width),
        "head.bias": (num_classes,),
    }
    for i in range(sizes.depth):
        block, attn, hidden = f"blocks.{i}.", 64 * sizes.num_heads[i], sizes.hidden_dims[i]
        shapes[block + "attn.qkv.weight"] = (3 * attn, width)
        shapes[block + "attn.qkv.bias"] = (3 * attn,)
        for kind in ("k", "v"):
            for axis in ("v", "h"):
                name = f"{block}attn.rel_pos_embed_{kind}.embeddings_table_{axis}"
                shapes[name] = (30, 64)
        shapes[block + "attn.proj.weight"] = (width, attn)
        shapes[block + "attn.proj.bias"] = (width,)
        for norm in ("attn_layer_norm", "ffn_layer_norm"):
            shapes[f"{block}{norm}.weight"] = shapes[f"{block}{norm}.bias"] = (width,)
        shapes[block + "fc1.weight"], shapes[block + "fc1.bias"] = (hidden, width), (hidden,)
        shapes[block + "fc2.weight"], shapes[block + "fc2.bias"] = (width, hidden), (width,)
    return shapes


def training_checkpoint(state: dict[str, Tensor]) -> dict[str, Any]:
    """Return what the official training loop saves: the weights are one entry of six."""
    return {
        "model": state,
        "optimizer": {"state": {}, "param_groups": []},
        "lr_scheduler": {},
        "epoch": 499,
        "scaler": {},
        "args": argparse.Namespace(cfg="supernet.yaml", change_qkv=True, mode="super"),
    }


def nni_shapes(sizes: SubnetConfig, blocks: str = "blocks") -> dict[str, tuple[int, ...]]:
    """Return NNI's names and shapes; its supernets nest blocks as "blocks.blocks"."""
    out: dict[str, tuple[int, ...]] = {}
    for name, shape in official_shapes(sizes).items():
        name = name.replace("blocks.", f"{blocks}.").replace(
            "patch_embed_super.proj", "patch_embed"
        )
        if ".qkv." in name:
            for part in "qkv":
                out[name.replace(".qkv.", f".{part}.")] = (shape[0] // 3, *shape[1:])
        else:
            out[f"{name}.{name}" if name in ("cls_token", "pos_embed") else name] = shape
    return out


def nni_state(sizes: SubnetConfig, blocks: str = "blocks") -> dict[str, Tensor]:
    """Return a state dict as NNI has it, filled by the rule."""
    return {name: fill("", name, shape) for name, shape in nni_shapes(sizes, blocks).items()}


def mmrazor_state(prenas: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a PreNAS supernet's values as MMRazor stores them: q, k and v apart."""
    out: dict[str, Tensor] = {}
    for name, value in prenas.items():
        name = name.replace("patch_embed_super.proj", "patch_embed.projection")
        name = name.replace("attn_layer_norm", "ln1").replace("ffn_layer_norm", "ln2")
        name = name.replace("norm.", "ln.") if name.startswith("norm.") else name
        name = name.replace("head.", "head.fc.") if name.startswith("head.") else f"backbone.{name}"
        for i, part in enumerate("qkv" if ".qkv." in name else ["all"]):
            rows = value if part == "all" else value[i::3].clone()
            out[f"architecture.{name.replace('.qkv.', f'.w_{part}s.')}"] = rows
    return out
