"""Checkpoints with made-up numbers in every upstream format, small unless a space is asked for."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import SubnetWeights, SupernetWeights
from autoformer_zoo.weights.layouts import BIAS_RULES, Architecture, Family, Layout, upstream_names
from autoformer_zoo.weights.slicing import BiasRule

SUPERNET = SubnetConfig(2, 128, (2, 2), (2.0, 2.0))
SUBNET = SubnetConfig(2, 96, (1, 2), (2.0, 1.0))
SIZES: dict[str, Any] = {"img_size": 64, "num_classes": 10}  # what models of these need to be told


def make_supernet(
    sizes: SubnetConfig = SUPERNET,
    bias_rule: BiasRule = "prefix",
    seed: int = 0,
    img_size: int = 64,
    patch_size: int = 16,
    num_classes: int = 10,
) -> SupernetWeights:
    """Return a supernet whose tensors are all different from zero and from each other."""
    rng = torch.Generator().manual_seed(seed)
    net = Architecture(
        sizes, (img_size, img_size), (patch_size, patch_size), in_chans=3, num_classes=num_classes
    )
    tensors = {
        name: torch.randn(shape, generator=rng) * 0.1 for name, shape in net.shapes().items()
    }
    return SupernetWeights(tensors, net, bias_rule)


def cut(supernet: SupernetWeights, subnet: SubnetConfig = SUBNET) -> SubnetWeights:
    """Return a subnet's weights."""
    return supernet.cut(subnet)


def supernet_file(supernet: SupernetWeights, layout: Layout = "packed_prefix") -> bytes:
    """Return a supernet as an official, or a PreNAS, checkpoint file."""
    assert BIAS_RULES[layout] == supernet.bias_rule
    return saved({"model": _upstream("packed", supernet.tensors, layout), "epoch": 3})


def nni_file(weights: SubnetWeights) -> bytes:
    """Return a subnet as one of NNI's files."""
    return saved(_upstream("nni", weights.tensors))


def assert_has(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Compare a model's tensors with others, bit by bit."""
    state: dict[str, Tensor] = model.state_dict()
    assert state.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(state[name], tensor), name


def saved(content: object) -> bytes:
    """Return what torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _upstream(family: Family, tensors: Any, layout: Layout | None = None) -> dict[str, Tensor]:
    return {
        upstream: part.clone()
        for name, tensor in tensors.items()
        for upstream, part in zip(
            upstream_names(family, name), _split(family, name, tensor, layout), strict=True
        )
    }


def _split(family: Family, name: str, tensor: Tensor, layout: Layout | None) -> list[Tensor]:
    """Undo `layouts.join`: return the upstream parts of one of our tensors."""
    if name.endswith(".attn.rel_pos"):
        return list(tensor.unbind(0))
    if ".attn.qkv." in name and family == "nni":
        return list(tensor.chunk(3))
    if ".attn.qkv." in name and (name.endswith("weight") or layout == "packed_interleaved"):
        return [torch.stack(tensor.chunk(3), 1).flatten(0, 1)]
    return [tensor]
