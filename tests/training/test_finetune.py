"""Fine-tuning: another head and input size, from the zoo or a file, by the loop of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import autoformer_zoo as az
from tests.helpers.made_training import QUICK, log_lines, write_folder
from training.config import AugmentConfig, DataConfig, Stage, TrainConfig, WeightsConfig
from training.engine.network import make_network
from training.engine.weights import WEIGHTS
from training.finetune import CIFAR10, PRESETS
from training.train import train

NANO = TrainConfig(
    num_classes=4,
    sampling="fixed",
    weights=WeightsConfig(model="autoformer_nano"),
    stages=(Stage(1, 48),),
    batch_size=8,
    opt="sgd",
    lr=0.01,
    layer_decay=0.75,
    freeze_blocks=4,
    precision="fp32",
    held_out_per_class=1,
    log_every=1,
    data=DataConfig(source="folder"),
    augment=AugmentConfig(crop="resized"),
)


def test_model_of_the_zoo_is_tuned_to_new_classes_and_size(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", side=48)
    state = train(NANO, folder, tmp_path / "run", progress=False, resources=QUICK)
    assert state.step == 2
    assert len(log_lines(tmp_path / "run")) == 3
    model = state.network.weights
    assert model.head.weight.shape == (4, 192)
    assert model.patch_embed.img_size == (48, 48)
    before = az.create_model("autoformer_nano", pretrained=True)
    assert torch.equal(model.blocks[3].mlp.fc1.weight, before.blocks[3].mlp.fc1.weight)
    assert not torch.equal(model.blocks[5].mlp.fc1.weight, before.blocks[5].mlp.fc1.weight)

    opened = az.create_model("autoformer_subnet", checkpoint_path=tmp_path / "run" / WEIGHTS).eval()
    x = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        expected = state.ema.module(x, model.cfg)
        torch.testing.assert_close(opened(x), expected, rtol=0, atol=1e-5)


def test_any_subnet_of_the_model_can_be_tuned() -> None:
    subnet = az.SPACES["nano"].smallest
    network = make_network(replace(NANO, subnet=subnet.to_json(), freeze_blocks=0))
    assert network.weights.cfg == subnet
    inherited = az.create_model("autoformer_nano", pretrained=True, subnet=subnet)
    assert torch.equal(network.weights.blocks[0].attn.rel_pos, inherited.blocks[0].attn.rel_pos)
    assert network.training


def test_new_head_follows_from_the_seed() -> None:
    heads = [make_network(replace(NANO, seed=seed)).weights.head.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_presets_have_deits_transfer_settings() -> None:
    assert (CIFAR10.opt, CIFAR10.lr, CIFAR10.batch_size) == ("sgd", 0.01, 768)
    assert (CIFAR10.epochs, CIFAR10.largest_size, CIFAR10.weight_decay) == (1000, 384, 1e-4)
    assert (CIFAR10.augment.erasing, CIFAR10.drop_path_rate) == (0.0, 0.0)
    classes = {name: config.num_classes for name, config in PRESETS.items() if name != "smoke"}
    assert classes == {
        "cifar10": 10,
        "cifar100": 100,
        "flowers": 102,
        "cars": 196,
        "pets": 37,
        "inaturalist": 8142,
    }


def test_model_of_another_family_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "training.engine.network.create_model", lambda *_, **__: torch.nn.Identity()
    )
    with pytest.raises(ValueError, match="'autoformer_nano' is not an AutoFormer, but a Identity"):
        make_network(NANO)
