"""Cut a subnet out of a supernet.

One rule for all of AutoFormer: the subnet's tensor is a corner of the supernet's. The exception is
the bias of q, k and v in the official files, see `slice_qkv_bias`. Pure functions, which extraction
and every step of supernet training share.

Source: arXiv 2107.00651, section 3.2 (weight entanglement); microsoft/Cream@4a13c40,
AutoFormer/model/module/qkv_super.py:72-83.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from autoformer_zoo.space import HEAD_DIM, SubnetConfig, misfit

BiasRule = Literal["prefix", "packed_prefix"]
"""How a subnet takes its q, k and v biases from a supernet's `qkv.bias` of 3 * 64 * heads numbers.

prefix: the bias is three thirds q, k, v; a subnet with h heads takes the first 64h of each, as for
the weight.
packed_prefix: a subnet takes the first 3 * 64h and splits these in thirds, so which number is a v
bias depends on h. The official code does so, and its weights were trained with it.
"""


def slice_supernet(
    tensors: Mapping[str, Tensor],
    supernet: SubnetConfig,
    subnet: SubnetConfig,
    bias_rule: BiasRule = "prefix",
) -> dict[str, Tensor]:
    """Return the tensors of a subnet, under the names of the static network.

    Args:
        tensors: the supernet's tensors, under the same names.
        supernet: its sizes.
        subnet: what to cut out.
        bias_rule: see `BiasRule`.

    Returns:
        Views into `tensors`, except qkv, which is concatenated; gradients flow through.

    Raises:
        ValueError: the rule is unknown, or the subnet does not fit; the text names the layer, what
            it needs and what the supernet has.
    """
    if problem := misfit(subnet, supernet):
        raise ValueError(f"the subnet does not fit the supernet: {problem}")
    if bias_rule not in get_args(BiasRule):
        raise ValueError(f"bias_rule is {bias_rule!r}; expected one of {get_args(BiasRule)}")
    C = subnet.embed_dim
    out = {
        "patch_embed.proj.weight": tensors["patch_embed.proj.weight"][:C],
        "patch_embed.proj.bias": tensors["patch_embed.proj.bias"][:C],
        "cls_token": tensors["cls_token"][..., :C],
        "pos_embed": tensors["pos_embed"][..., :C],
    }
    for i in range(subnet.depth):
        block, width, hidden = f"blocks.{i}.", subnet.attn_dims[i], subnet.hidden_dims[i]
        for norm in ("norm1", "norm2"):
            for kind in ("weight", "bias"):
                out[f"{block}{norm}.{kind}"] = tensors[f"{block}{norm}.{kind}"][:C]
        qkv_weight = tensors[f"{block}attn.qkv.weight"]
        out[f"{block}attn.qkv.weight"] = _prefix_of_thirds(qkv_weight, width)[:, :C]
        qkv_bias = tensors[f"{block}attn.qkv.bias"]
        out[f"{block}attn.qkv.bias"] = slice_qkv_bias(qkv_bias, subnet.num_heads[i], bias_rule)
        out[f"{block}attn.rel_pos"] = tensors[f"{block}attn.rel_pos"]
        out[f"{block}attn.proj.weight"] = tensors[f"{block}attn.proj.weight"][:C, :width]
        out[f"{block}attn.proj.bias"] = tensors[f"{block}attn.proj.bias"][:C]
        out[f"{block}mlp.fc1.weight"] = tensors[f"{block}mlp.fc1.weight"][:hidden, :C]
        out[f"{block}mlp.fc1.bias"] = tensors[f"{block}mlp.fc1.bias"][:hidden]
        out[f"{block}mlp.fc2.weight"] = tensors[f"{block}mlp.fc2.weight"][:C, :hidden]
        out[f"{block}mlp.fc2.bias"] = tensors[f"{block}mlp.fc2.bias"][:C]
    for kind in ("weight", "bias"):
        out[f"norm.{kind}"] = tensors[f"norm.{kind}"][:C]
    if "head.weight" in tensors:
        out["head.weight"] = tensors["head.weight"][:, :C]
        out["head.bias"] = tensors["head.bias"]
    return out


def slice_qkv_bias(bias: Tensor, num_heads: int, rule: BiasRule) -> Tensor:
    """Return a subnet's q, k and v biases (3 * 64 * num_heads,) from the supernet's.

    Upstream quirk: under packed_prefix the weight and the bias of a layer are cut differently
    (microsoft/Cream@4a13c40, qkv_super.py:72-83; `test_packed_prefix_bias_depends_on_heads`).
    """
    width = num_heads * HEAD_DIM
    return bias[: 3 * width] if rule == "packed_prefix" else _prefix_of_thirds(bias, width)


def _prefix_of_thirds(packed: Tensor, width: int) -> Tensor:
    """Take the first `width` rows of q, of k and of v from (3 * full, ...)."""
    if packed.shape[0] == 3 * width:
        return packed
    return torch.cat([third[:width] for third in packed.chunk(3)])
