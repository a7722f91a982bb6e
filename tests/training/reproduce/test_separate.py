"""Separate weights per choice: what is shared, decay, and resuming a run."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autoformer_zoo.network.supernet import Supernet
from tests.helpers.made_reproduction import CONFIG, use_made_images
from tests.helpers.made_training import MINI, QUICK
from training.reproduce.separate import SeparateSupernet, load_separate, make_separate
from training.search.evaluation import load_averaged
from training.settings.config import Stage
from training.train import train


def test_separate_weights_share_only_what_was_chosen_alike() -> None:
    network = SeparateSupernet(MINI)
    one = replace(MINI.largest, num_heads=(1, 2, 2))
    other = replace(MINI.largest, mlp_ratio=(2.0, 1.0, 2.0))
    network(torch.randn(2, 3, 16, 16), one).sum().backward()
    used = {key for key, p in network.weights.tensors.items() if p.grad is not None}
    network.zero_grad()
    network(torch.randn(2, 3, 16, 16), other).sum().backward()
    also = {key for key, p in network.weights.tensors.items() if p.grad is not None}
    shared = {key.partition("/")[2] for key in used & also}
    assert {key for key in shared if "attn:qkv:weight" in key} == {
        "blocks:1:attn:qkv:weight",
        "blocks:2:attn:qkv:weight",
    }
    assert {key for key in shared if "fc1:weight" in key} == {
        "blocks:0:mlp:fc1:weight",
        "blocks:2:mlp:fc1:weight",
    }


def test_separate_weights_decay_as_the_supernet_does() -> None:
    separate, shared = SeparateSupernet(MINI).weights, Supernet(MINI).weights
    names = {name.rpartition(":")[2].rpartition("/")[2] for name in separate.no_weight_decay()}
    assert names == {name.rpartition(".")[2] for name in shared.no_weight_decay()}
    known = {name for name, _ in separate.named_parameters()}
    assert separate.no_weight_decay() <= known


def test_separate_run_resumes_and_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_made_images(monkeypatch)
    config = replace(CONFIG.train, stages=(Stage(2, 16),))
    state = train(config, tmp_path, tmp_path / "run", False, resources=QUICK, make=make_separate)
    network, x = load_separate(tmp_path / "run"), torch.randn(2, 3, 16, 16)
    subnet = MINI.sample(random.Random(0))
    with torch.no_grad():
        torch.testing.assert_close(network(x, subnet), state.ema.module.eval()(x, subnet))
    again = train(config, tmp_path, tmp_path / "run", False, resources=QUICK, make=make_separate)
    assert again.step == state.step == 4
    with pytest.raises(ValueError, match=r"run trained weights of their own for each choice"):
        load_averaged(tmp_path / "run")
