"""A watch sees every change that could make a prepared model wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import parametrize

from autoformer_zoo.network.staleness import ModuleWatch, TensorWatch, is_watchable


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.mul_(2),
        lambda tensor: tensor.data.mul_(2),
        lambda tensor: setattr(tensor, "data", tensor * 2),
        lambda tensor: tensor[1:].fill_(3),
        lambda tensor: tensor.data[:, 1].fill_(3),
        lambda tensor: tensor.data[60:70].fill_(3),
    ],
    ids=["in place", "data in place", "data replaced", "a row", "a column of data", "rows of data"],
)
def test_tensor_watch_sees_a_change(dtype: torch.dtype, change: Callable[[Tensor], object]) -> None:
    tensor = torch.ones(70, 2, dtype=dtype)
    watch = TensorWatch(tensor)
    assert watch.is_unchanged()
    tensor.sum()
    assert watch.is_unchanged()
    change(tensor)
    assert not watch.is_unchanged()


def test_parts_and_stacks_are_watched_too() -> None:
    for tensor in (torch.ones(4, 30, 8), torch.ones(100, 90)[:80, :20], torch.ones(90, 70).T):
        watch = TensorWatch(tensor)
        assert watch.is_unchanged()
        tensor.data[0, 0].fill_(2)
        assert not watch.is_unchanged()


def test_freed_memory_is_not_taken_for_the_same() -> None:
    tensor = torch.ones(64, 64)
    watch = TensorWatch(tensor)
    for _ in range(20):
        tensor.data = torch.ones(64, 64)  # might come to lie where the first one lay
        assert not watch.is_unchanged()


def test_only_tensors_in_memory_with_a_version_are_watchable() -> None:
    assert is_watchable(torch.ones(1))
    assert is_watchable(nn.Parameter(torch.ones(1)))
    assert not is_watchable(torch.empty(0))
    assert not is_watchable(torch.eye(2).to_sparse())
    assert not is_watchable(torch.ones(1, device="meta"))
    with torch.inference_mode():
        assert not is_watchable(torch.ones(1))
    with FakeTensorMode():
        assert not is_watchable(torch.ones(1))


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "mode": lambda net: net[1].train(),
    "hook": lambda net: net[0].register_forward_hook(lambda *_: None),
    "hook before": lambda net: net[0].register_forward_pre_hook(lambda *_: None),
    "hook of the whole": lambda net: net.register_forward_hook(lambda *_: None),
    "forward": lambda net: setattr(net[1], "forward", lambda x: 2 * x),
    "compiled": lambda net: net[1].compile(backend="eager"),
    "child": lambda net: net.__setitem__(1, nn.GELU()),
    "another child": lambda net: net.append(nn.GELU()),
    "class": lambda net: setattr(net[1], "__class__", nn.Identity),
    "setting": lambda net: setattr(net[0], "eps", 1e-6),
    "parameter": lambda net: setattr(net[0], "bias", nn.Parameter(torch.ones(4))),
    "no parameter": lambda net: setattr(net[0], "bias", None),
    "parametrization": lambda net: parametrize.register_parametrization(
        net[0], "weight", Doubled()
    ),
    "value": lambda net: net[0].weight.data.fill_(2),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_module_watch_sees_a_change(change: Callable[[nn.Sequential], object]) -> None:
    net = nn.Sequential(nn.LayerNorm((4, 4)), nn.GELU()).eval()
    watch = ModuleWatch([net], [net[0].weight])
    assert watch.is_unchanged()
    net(torch.ones(4, 4))
    assert watch.is_unchanged()
    change(net)
    assert not watch.is_unchanged()


def test_module_watch_sees_a_hook_and_its_removal() -> None:
    net = nn.Linear(4, 4)
    handle = net.register_forward_hook(lambda *_: None)
    watch = ModuleWatch([net], [])
    handle.remove()
    assert not watch.is_unchanged()


def test_values_of_other_parameters_may_change() -> None:
    net = nn.Linear(4, 4)
    watch = ModuleWatch([net], [net.weight])
    with torch.no_grad():
        net.bias.fill_(3)
    assert watch.is_unchanged()
