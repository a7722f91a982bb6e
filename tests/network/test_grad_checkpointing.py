"""Blocks run again in the backward pass: the same gradients from less memory."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from autoformer_zoo.network.supernet import Supernet
from autoformer_zoo.published import SPACES
from tests.helpers.made_training import ALONE, MINI_CONFIG, QUICK, assert_same_run, split_in_memory
from training.data import open as data_open
from training.settings.config import TrainConfig
from training.train import train

NANO = SPACES["nano"]


def _gradients(supernet: Supernet, x: Tensor) -> tuple[list[Tensor | None], int]:
    """Return the gradients of a subnet's loss, and how many elements were kept for them."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    supernet.zero_grad()
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = supernet(x, NANO.sample(random.Random(1))).square().mean()
    loss.backward()
    return [each.grad for each in supernet.parameters()], sum(kept.values())


def test_gradients_of_a_supernet_are_the_same_and_less_is_kept() -> None:
    torch.manual_seed(0)
    supernet = Supernet(NANO).double().train()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    plain, kept = _gradients(supernet, x)
    supernet.grad_checkpointing = True
    again, kept_less = _gradients(supernet, x)
    torch.testing.assert_close(again, plain, rtol=0, atol=1e-15)
    assert kept_less < kept / 4


@pytest.mark.parametrize("config", [MINI_CONFIG, ALONE])  # with stochastic depth
def test_training_computes_the_same_with_it(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_open, "load_train", split_in_memory)
    resources = replace(QUICK, grad_checkpointing=True)
    train(config, tmp_path, tmp_path / "plain", progress=False, resources=QUICK)
    state = train(config, tmp_path, tmp_path / "again", progress=False, resources=resources)
    assert state.network.grad_checkpointing
    assert_same_run(tmp_path / "plain", tmp_path / "again")
