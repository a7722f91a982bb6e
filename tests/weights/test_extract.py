"""Extraction against a slicer of upstream's packed tensors, written from the definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from autoformer_zoo.models.factory import extract_subnet
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import SupernetWeights
from autoformer_zoo.weights.pretrained import load_supernet
from autoformer_zoo.weights.slicing import slice_qkv_bias
from tests.helpers.network_definition import defined_network
from tests.helpers.upstream import official_state, uniform

SUPERNET = uniform(3, 40, 3)
STATE = official_state(SUPERNET, img_size=12, num_classes=5, patch_size=4)
SUBNET = SubnetConfig(2, 24, (1, 2), (2.0, 1.5))


def supernet(layout: str = "packed_prefix", dtype: torch.dtype = torch.float32) -> SupernetWeights:
    return load_supernet({name: value.to(dtype) for name, value in STATE.items()}, layout)


@st.composite
def subnets(draw: st.DrawFn) -> SubnetConfig:
    depth = draw(st.integers(1, SUPERNET.depth))
    per_block = {"min_size": depth, "max_size": depth}
    return SubnetConfig(
        depth,
        draw(st.integers(1, SUPERNET.embed_dim)),
        tuple(draw(st.lists(st.integers(1, 3), **per_block))),
        tuple(draw(st.lists(st.sampled_from((1.0, 2.0, 3.3, 4.0)), **per_block))),
    )


@pytest.mark.parametrize("layout", ["packed_prefix", "packed_interleaved"])
@settings(max_examples=20, deadline=None)
@given(subnet=subnets(), seed=st.integers(0, 2**31))
def test_extracted_network_equals_the_definition_on_sliced_tensors(
    layout: str, subnet: SubnetConfig, seed: int
) -> None:
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed)).double()
    network = extract_subnet(supernet(layout), subnet).double()
    expected = defined_network(x, sliced_state(STATE, subnet, layout), subnet)
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-12)


def test_packed_prefix_bias_depends_on_heads() -> None:
    bias = torch.arange(3.0 * 64 * 3)
    for heads, first in ((1, 128), (2, 256)):
        assert torch.equal(
            slice_qkv_bias(bias, heads, "packed_prefix")[first:], bias[first : 192 * heads]
        )
        assert torch.equal(
            slice_qkv_bias(bias, heads, "prefix")[first:], bias[384 : 384 + 64 * heads]
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extracted_network_is_ready_to_use(dtype: torch.dtype) -> None:
    network = extract_subnet(supernet(dtype=dtype), SUBNET)
    assert torch.equal(network.norm.weight, STATE["norm.weight"][:24].to(dtype).float())
    assert not network.training
    assert network.cfg == SUBNET
    for name, weight in network.named_parameters():
        assert weight.requires_grad, name
        assert weight.device.type == "cpu", name
        assert weight.dtype == torch.float32, name
        assert weight.is_contiguous(), name
        assert weight.untyped_storage().nbytes() == weight.numel() * 4, name


def test_extracted_network_shares_nothing_with_the_supernet() -> None:
    weights = supernet()
    before = {name: value.clone() for name, value in weights.tensors.items()}
    network = extract_subnet(weights, SUPERNET)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in weights.tensors.items())


@pytest.mark.parametrize(
    ("img_size", "grid"), [(20, (5, 5)), ((8, 16), (2, 4)), ((12, 12), (3, 3))]
)
def test_other_input_size_resamples_positions(
    img_size: int | tuple[int, int], grid: tuple[int, int]
) -> None:
    network = extract_subnet(supernet(), SUBNET, img_size)
    expected = resample_abs_pos_embed(STATE["pos_embed"][..., :24], list(grid), [3, 3])
    torch.testing.assert_close(network.pos_embed, expected, rtol=0, atol=1e-6)
    assert network.patch_embed.grid_size == grid
    x, later = torch.randn(1, 3, 4 * grid[0], 4 * grid[1]), extract_subnet(supernet(), SUBNET)
    later.set_input_size(img_size)
    with torch.no_grad():
        torch.testing.assert_close(network(x), later(x))


@pytest.mark.parametrize("img_size", [13, (12, 0), -4])
def test_input_size_off_the_patch_grid_is_refused(img_size: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"img_size is .*; expected positive multiples"):
        extract_subnet(supernet(), SUBNET, img_size)


def test_subnet_that_does_not_fit_names_the_layer() -> None:
    with pytest.raises(ValueError, match=r"blocks\.1\.attn needs 4 heads, the supernet has 3"):
        extract_subnet(supernet(), SubnetConfig(2, 24, (1, 4), (1.0, 1.0)))


def sliced_state(state: dict[str, Tensor], subnet: SubnetConfig, layout: str) -> dict[str, Tensor]:
    """Cut upstream's packed tensors as upstream does in each forward pass, under our names.

    Written from the definition on purpose: it shares no code with the package.
    """
    width = subnet.embed_dim
    out = {
        "patch_embed.proj.weight": state["patch_embed_super.proj.weight"][:width],
        "patch_embed.proj.bias": state["patch_embed_super.proj.bias"][:width],
        "cls_token": state["cls_token"][..., :width],
        "pos_embed": state["pos_embed"][..., :width],
        "norm.weight": state["norm.weight"][:width],
        "norm.bias": state["norm.bias"][:width],
        "head.weight": state["head.weight"][:, :width],
        "head.bias": state["head.bias"],
    }
    for i in range(subnet.depth):
        block, attn, hidden = f"blocks.{i}.", subnet.attn_dims[i], subnet.hidden_dims[i]
        weight = state[f"{block}attn.qkv.weight"][: 3 * attn, :width]
        bias = state[f"{block}attn.qkv.bias"][: 3 * attn]
        if layout == "packed_interleaved":
            bias = torch.cat([bias[part::3] for part in range(3)])
        tables = [f"{block}attn.rel_pos_embed_{k}.embeddings_table_{a}" for k in "kv" for a in "vh"]
        out |= {
            f"{block}attn.qkv.weight": torch.cat([weight[part::3] for part in range(3)]),
            f"{block}attn.qkv.bias": bias,
            f"{block}attn.rel_pos": torch.stack([state[name] for name in tables]),
            f"{block}attn.proj.weight": state[f"{block}attn.proj.weight"][:width, :attn],
            f"{block}attn.proj.bias": state[f"{block}attn.proj.bias"][:width],
            f"{block}mlp.fc1.weight": state[f"{block}fc1.weight"][:hidden, :width],
            f"{block}mlp.fc1.bias": state[f"{block}fc1.bias"][:hidden],
            f"{block}mlp.fc2.weight": state[f"{block}fc2.weight"][:width, :hidden],
            f"{block}mlp.fc2.bias": state[f"{block}fc2.bias"][:width],
        }
        for ours, theirs in (("norm1", "attn_layer_norm"), ("norm2", "ffn_layer_norm")):
            for kind in ("weight", "bias"):
                out[f"{block}{ours}.{kind}"] = state[f"{block}{theirs}.{kind}"][:width]
    return {name: tensor.double() for name, tensor in out.items()}
