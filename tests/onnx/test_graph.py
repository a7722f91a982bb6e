"""graph.py: the network written for the graph is the network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoformer_zoo.models.factory import create_model
from autoformer_zoo.network.block import RelPosAttention
from autoformer_zoo.onnx.graph import ErfGelu, GridConstants, OnnxAttention, rewrite_for_graph
from tests.helpers.onnx_models import SUBNET


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (4, 6), (14, 14), (3, 20)])
@pytest.mark.parametrize("batch", [1, 3])
def test_attention_is_the_definition(grid: tuple[int, int], batch: int) -> None:
    attention = RelPosAttention(96, 2, form="explicit").eval()
    nn.init.normal_(attention.rel_pos)
    nn.init.normal_(attention.qkv.bias)
    written = OnnxAttention(attention, grid, GridConstants(grid))
    x = torch.randn(batch, 1 + grid[0] * grid[1], 96)
    with torch.no_grad():
        expected = attention(x, grid)
        found = written(x, grid)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("img_size", "pool"), [(16, "avg"), ((8, 20), "token"), (12, "avgmax"), (68, "avg")]
)
def test_rewritten_network_equals_the_network(img_size: int, pool: str) -> None:
    model = create_model("autoformer_nano", subnet=SUBNET, img_size=img_size, global_pool=pool)
    model = model.eval()
    for block in model.blocks:
        nn.init.normal_(block.attn.rel_pos, std=0.5)
    images = torch.randn(3, 3, *model.patch_embed.img_size)
    with torch.no_grad():
        expected = model(images)
        found = rewrite_for_graph(model.train())(images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert model.training  # the model is left alone
        assert torch.equal(model.eval()(images), expected)


def test_gelu_of_other_networks_is_rewritten_where_it_is_exact() -> None:
    model = nn.Sequential(nn.GELU(), nn.GELU(approximate="tanh"))
    exact, approximate = rewrite_for_graph(model)
    x = torch.linspace(-6, 6, 101)
    assert isinstance(exact, ErfGelu)
    assert isinstance(approximate, nn.GELU)
    torch.testing.assert_close(exact(x), nn.functional.gelu(x))
