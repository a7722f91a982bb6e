"""Extraction against a slicer that cuts upstream's packed tensors while it runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from autoformer_zoo.factory import build_subnet, extract_subnet
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import SupernetWeights, open_checkpoint
from autoformer_zoo.weights.pretrained import load_supernet
from autoformer_zoo.weights.slicing import slice_qkv_bias
from tests.helpers.upstream import nni_state, official_state, uniform

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
def test_extracted_network_equals_slicing_while_running(
    layout: str, subnet: SubnetConfig, seed: int
) -> None:
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed)).double()
    network = extract_subnet(supernet(layout), subnet).double()
    with torch.no_grad():
        torch.testing.assert_close(
            network(x), run_sliced(STATE, subnet, x, layout), rtol=0, atol=1e-12
        )


def test_packed_prefix_bias_depends_on_heads() -> None:
    bias = torch.arange(3.0 * 64 * 3)
    assert torch.equal(slice_qkv_bias(bias, 2, "packed_prefix")[256:], bias[256:384])
    assert torch.equal(slice_qkv_bias(bias, 1, "packed_prefix")[128:], bias[128:192])
    assert torch.equal(slice_qkv_bias(bias, 2, "prefix")[256:], bias[384:512])


def test_extracted_network_is_ready_to_use() -> None:
    network = extract_subnet(supernet(), SUBNET)
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_supernet_makes_a_float32_network(dtype: torch.dtype) -> None:
    network = extract_subnet(supernet(dtype=dtype), SUBNET)
    stored = STATE["norm.weight"][:24].to(dtype)
    assert network.norm.weight.dtype == torch.float32
    assert torch.equal(network.norm.weight, stored.float())


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
    with torch.no_grad():
        assert network(torch.randn(1, 3, 4 * grid[0], 4 * grid[1])).isfinite().all()


def test_resizing_at_extraction_equals_resizing_later() -> None:
    x = torch.randn(1, 3, 8, 16)
    later = extract_subnet(supernet(), SUBNET)
    later.set_input_size((8, 16))
    with torch.no_grad():
        torch.testing.assert_close(extract_subnet(supernet(), SUBNET, (8, 16))(x), later(x))


@pytest.mark.parametrize("img_size", [13, (12, 0), -4])
def test_input_size_off_the_patch_grid_is_refused(img_size: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"img_size is .*; expected positive multiples"):
        extract_subnet(supernet(), SUBNET, img_size)


@pytest.mark.parametrize(
    ("subnet", "reason"),
    [
        (uniform(4, 24, 1), "depth 4 needs 4 blocks, the supernet has 3"),
        (uniform(3, 41, 1), "embed_dim 41 needs that width .*, the supernet has 40"),
        (SubnetConfig(2, 24, (1, 4), (1.0, 1.0)), r"blocks\.1\.attn needs 4 heads, .* has 3"),
        (SubnetConfig(1, 40, (1,), (4.1,)), r"blocks\.0\.mlp needs 164 hidden .* has 160"),
    ],
)
def test_subnet_that_does_not_fit_names_the_layer(subnet: SubnetConfig, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        extract_subnet(supernet(), subnet)


def test_wider_hidden_layer_fits_where_the_width_leaves_room() -> None:
    wide = SubnetConfig(1, 20, (1,), (8.0,))  # ratio 8 of 20 is as wide as ratio 4 of 40
    assert extract_subnet(supernet(), wide).blocks[0].mlp.fc1.weight.shape == (160, 20)


def test_subnet_file_becomes_a_network(tmp_path: Path) -> None:
    torch.save(nni_state(SUBNET), tmp_path / "nni.pth")
    network = build_subnet(open_checkpoint(tmp_path / "nni.pth").subnet(), img_size=(32, 48))
    with torch.no_grad():
        assert network(torch.randn(1, 3, 32, 48)).shape == (1, 5)


def run_sliced(state: dict[str, Tensor], subnet: SubnetConfig, x: Tensor, layout: str) -> Tensor:
    """Run a subnet on upstream's packed tensors, each cut where it is used, from the definition.

    Slow and plain on purpose: it shares no code with the package.
    """
    full = {name: value.double() for name, value in state.items()}
    width = subnet.embed_dim
    patch = full["patch_embed_super.proj.weight"].shape[-1]
    side = x.shape[-1] // patch
    x = torch.nn.functional.conv2d(
        x,
        full["patch_embed_super.proj.weight"][:width],
        full["patch_embed_super.proj.bias"][:width],
        stride=patch,
    )
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([full["cls_token"][..., :width].expand(len(x), -1, -1), x], 1)
    x = x + full["pos_embed"][..., :width]
    for i in range(subnet.depth):
        layer = {k.removeprefix(f"blocks.{i}."): v for k, v in full.items() if f"blocks.{i}." in k}
        normed = plain_norm(x, layer, "attn_layer_norm", width)
        x = x + sliced_attention(normed, layer, subnet.num_heads[i], side, layout)
        hidden = int(width * subnet.mlp_ratio[i])
        y = plain_norm(x, layer, "ffn_layer_norm", width)
        y = y @ layer["fc1.weight"][:hidden, :width].T + layer["fc1.bias"][:hidden]
        y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
        x = x + y @ layer["fc2.weight"][:width, :hidden].T + layer["fc2.bias"][:width]
    x = plain_norm(x, full, "norm", width)[:, 1:].mean(1)
    return x @ full["head.weight"][:, :width].T + full["head.bias"]


def sliced_attention(
    x: Tensor, layer: dict[str, Tensor], heads: int, side: int, layout: str
) -> Tensor:
    batch, tokens, width = x.shape
    size = 64 * heads
    weight = layer["attn.qkv.weight"][: 3 * size, :width]
    bias = layer["attn.qkv.bias"][: 3 * size]
    projected = []
    for part in range(3):
        if layout == "packed_interleaved":
            part_bias = bias[part::3]
        else:
            part_bias = bias[part * size : (part + 1) * size]
        projected.append(x @ weight[part::3].T + part_bias)
    out = torch.zeros(batch, tokens, size, dtype=x.dtype)
    rel_k = relative_vectors(layer, "k", tokens, side)
    rel_v = relative_vectors(layer, "v", tokens, side)
    for head in range(heads):
        q, k, v = (value[..., 64 * head : 64 * (head + 1)] for value in projected)
        for i in range(tokens):
            keys = k + rel_k[i]
            weights = ((keys * q[:, i : i + 1]).sum(-1) / 8).softmax(-1)
            mixed = (weights[..., None] * (v + rel_v[i])).sum(1)
            out[:, i, 64 * head : 64 * (head + 1)] = mixed
    return out @ layer["attn.proj.weight"][:width, :size].T + layer["attn.proj.bias"][:width]


def relative_vectors(layer: dict[str, Tensor], kind: str, tokens: int, side: int) -> Tensor:
    rows = layer[f"attn.rel_pos_embed_{kind}.embeddings_table_v"]
    columns = layer[f"attn.rel_pos_embed_{kind}.embeddings_table_h"]
    out = torch.zeros(tokens, tokens, 64, dtype=rows.dtype)
    for i in range(tokens):
        for j in range(tokens):
            if i == 0 or j == 0:
                out[i, j] = rows[0] + columns[0]
            else:
                (r, c), (to_r, to_c) = divmod(i - 1, side), divmod(j - 1, side)
                down = max(-14, min(14, to_r - r))
                right = max(-14, min(14, to_c - c))
                out[i, j] = rows[down + 15] + columns[right + 15]
    return out


def plain_norm(x: Tensor, tensors: dict[str, Tensor], name: str, width: int) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * tensors[f"{name}.weight"][:width] + tensors[f"{name}.bias"][:width]
