"""Packed weights: same results, never stale, and out of the way wherever they do not apply."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoformer_zoo.packed_linear import _HAS_PACKED, LinearCache
from autoformer_zoo.published import SPACES
from autoformer_zoo.vit import AutoFormer

pytestmark = pytest.mark.skipif(not _HAS_PACKED, reason="this build of torch has no MKL")


def packed_count(cache: LinearCache) -> int:
    return sum(packed is not None for _, packed in cache._kept.values())


def test_packs_when_a_batch_size_comes_again_and_agrees() -> None:
    cache, layer, x = LinearCache(), nn.Linear(48, 80), torch.randn(2, 7, 48)
    expected = layer(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(cache(layer, x), expected, rtol=0, atol=0)
        assert packed_count(cache) == 0
        for _ in range(2):
            torch.testing.assert_close(cache(layer, x), expected, rtol=0, atol=1e-6)
        assert packed_count(cache) == 1
        cache(layer, x[:1])
        assert packed_count(cache) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight.mul_(2),
        lambda layer: layer.weight.data.mul_(2),
        lambda layer: setattr(layer.weight, "data", layer.weight * 2),
        lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight * 2)),
        lambda layer: layer.load_state_dict({k: v * 2 for k, v in layer.state_dict().items()}),
    ],
    ids=["in place", "data in place", "data replaced", "parameter replaced", "load_state_dict"],
)
def test_changed_weight_is_packed_anew(change: Callable[[nn.Linear], object]) -> None:
    cache, layer, x = LinearCache(), nn.Linear(48, 80), torch.randn(7, 48)
    with torch.no_grad():
        for _ in range(3):
            cache(layer, x)
        change(layer)
        for _ in range(3):
            torch.testing.assert_close(cache(layer, x), layer(x), rtol=0, atol=1e-6)


def test_layer_itself_is_called_where_packing_does_not_apply() -> None:
    cache, layer, x = LinearCache(), nn.Linear(48, 80), torch.randn(7, 48)
    seen: list[object] = []
    handle = layer.register_forward_hook(lambda *call: seen.append(call))

    class Other(nn.Linear):
        pass

    with torch.no_grad():
        for _ in range(3):
            cache(layer, x)
        assert len(seen) == 3
        handle.remove()
        for _ in range(3):
            cache(Other(48, 80), x)
            cache(layer.double(), x.double())
            cache(layer.float(), x[:0])
            with torch.autocast("cpu", torch.bfloat16):
                assert cache(layer, x).dtype == torch.bfloat16
    for _ in range(3):
        assert cache(layer, x).requires_grad
    assert packed_count(cache) == 0


def test_counters_see_every_product_after_packing() -> None:
    model = AutoFormer(SPACES["nano"].smallest, 32, 4, num_classes=10).eval()
    x = torch.randn(1, 3, 32, 32)
    counts = []
    with torch.no_grad():
        for _ in range(3):
            with FlopCounterMode(display=False) as counter:
                model(x)
            counts.append(counter.get_total_flops())
            model(x)
            model(x)
    assert counts[0] == counts[1] == counts[2] > 0


def test_model_copies_and_files_hold_no_packed_weights() -> None:
    model = AutoFormer(SPACES["nano"].smallest, 32, 4, num_classes=10).eval()
    x = torch.randn(1, 3, 32, 32)
    size = len(pickle.dumps(model))
    with torch.no_grad():
        expected = [model(x) for _ in range(3)][-1]
        assert packed_count(model.blocks[0].mlp._linear) == 2
        assert len(pickle.dumps(model)) == size
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(other(x), expected, rtol=0, atol=1e-6)
    model.train()
    assert packed_count(model.blocks[0].mlp._linear) == 0
    assert "_linear" not in " ".join(model.state_dict())
