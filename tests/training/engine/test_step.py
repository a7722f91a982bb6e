"""What a step computes: subnets, losses, optimizer, precision, weights to start from."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F

from autoformer_zoo.models.factory import extract_subnet
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import (
    SubnetWeights,
    SupernetWeights,
    open_checkpoint,
)
from autoformer_zoo.weights.pretrained import load_supernet
from tests.helpers.made_training import (
    ALONE,
    MINI,
    MINI_CONFIG,
    QUICK,
    log_lines,
    open_quickly,
    split_in_memory,
    train_quickly,
)
from training.data.batch import epoch_order
from training.data.cifar10 import train_batch
from training.engine import step
from training.engine.loop import make_context, make_state
from training.engine.losses import soft_cross_entropy
from training.engine.network import FixedSubnet, make_network
from training.engine.sampling import subnets_of_step
from training.engine.step import make_optimizer, set_lr
from training.engine.weights import WEIGHTS, averaged_weights
from training.run.distributed import SINGLE
from training.settings.config import AugmentConfig, DistillConfig, Stage, TrainConfig
from training.train import resolve_precision

CPU = torch.device("cpu")
SANDWICH = replace(MINI_CONFIG, sampling="sandwich")

pytestmark = pytest.mark.usefixtures("made_up_images")


# Sampling


def test_sampled_subnets_follow_from_seed_and_step() -> None:
    drawn = [subnets_of_step(MINI, 0, number) for number in range(50)]
    assert drawn == [subnets_of_step(MINI, 0, number) for number in range(50)]
    assert drawn != [subnets_of_step(MINI, 1, number) for number in range(50)]
    assert {subnet.embed_dim for (subnet,) in drawn} == {32, 64}


def test_sandwich_adds_random_subnets_to_both_extremes() -> None:
    largest, smallest, *drawn = subnets_of_step(MINI, 0, 3, sandwich_random=2)
    assert (largest, smallest) == (MINI.largest, MINI.smallest)
    assert len(drawn) == 2
    assert all(MINI.contains(subnet) for subnet in drawn)
    assert subnets_of_step(MINI, 0, 4, sandwich_random=2)[2:] != tuple(drawn)
    without = subnets_of_step(MINI, 0, 3, sandwich_random=2, smallest=False)
    assert without == (MINI.largest, *drawn)


@pytest.mark.parametrize(
    "config", [MINI_CONFIG, SANDWICH, replace(SANDWICH, sandwich_smallest=False)]
)
def test_config_knows_how_many_subnets_a_step_trains(config: TrainConfig) -> None:
    source = open_quickly(config)
    context = make_context(config, make_state(config, CPU), source, SINGLE, QUICK)
    assert len(context.subnets(3)) == config.subnets_per_step


def test_sandwich_teaches_the_others_by_the_largest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        seen.append((logits, answers))
        return soft_cross_entropy(logits, answers)

    monkeypatch.setattr(step, "soft_cross_entropy", note)
    config = replace(SANDWICH, drop_path_rate=0.0, sandwich_random=1)
    state = train_quickly(tmp_path, config, stop_at=1)
    assert len(seen) == 2
    assert torch.equal(seen[0][1], seen[1][1])
    assert not seen[0][1].requires_grad
    start = make_state(config, CPU).network
    images = split_in_memory()[0]
    chosen = images.select(epoch_order(40, 0, 0)[:8])
    logits = start(train_batch(chosen, 8, 0, 0), MINI.largest)
    torch.testing.assert_close(seen[0][1], logits.detach())
    first = F.cross_entropy(logits, chosen.labels, label_smoothing=0.1)
    others = sum(soft_cross_entropy(*each) for each in seen)
    expected = ((first + others) / 3).item()
    assert log_lines(tmp_path)[0]["loss"] == pytest.approx(expected, abs=1e-5)
    assert state.step == 1


# Mixtures and teachers


@pytest.mark.parametrize("sampling", ["uniform", "sandwich"])
def test_mixed_batches_train(tmp_path: Path, sampling: str) -> None:
    augment = AugmentConfig(mixup=0.8, cutmix=1.0, mix_mode="elem")
    config = replace(MINI_CONFIG, augment=augment, sampling=sampling)
    assert train_quickly(tmp_path, config, stop_at=2).skipped == 0


def test_teacher_takes_part_in_a_step(tmp_path: Path) -> None:
    teacher = timm.create_model("test_efficientnet", num_classes=4)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    distill = DistillConfig("test_efficientnet", str(tmp_path / "teacher.pth"))
    losses = []
    for share in (0.0, 1.0):
        config = replace(MINI_CONFIG, distill=replace(distill, share=share))
        train_quickly(tmp_path / str(share), config, stop_at=1)
        losses.append(log_lines(tmp_path / str(share))[0]["loss"])
    assert losses[0] != losses[1]


# Optimizer


def groups_of(config: TrainConfig, **options: Any) -> dict[str, dict[str, float]]:
    model = make_network(config).weights
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, "adamw", 1e-3, 0.05, **options)
    return {
        names[id(parameter)]: {"decay": group["weight_decay"], "scale": group.get("lr_scale", 1.0)}
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_weight_decay_leaves_positions_and_tables_alone_but_for_upstreams_rule() -> None:
    clean, upstream = groups_of(MINI_CONFIG), groups_of(MINI_CONFIG, decays_tables=True)
    kept = {name for name, group in clean.items() if group["decay"] == 0}
    matrices = {name for name in clean if name.endswith("weight") and "norm" not in name}
    assert set(clean) - kept == matrices
    tables = {name for name in clean if name.endswith("rel_pos")}
    assert {name for name in clean if clean[name] != upstream[name]} == tables
    assert len(tables) == 3


def test_layer_decay_lowers_rates_towards_the_input() -> None:
    groups = groups_of(ALONE, layer_decay=0.5)
    scales = [
        groups[name]["scale"]
        for name in ("pos_embed", "blocks.0.norm1.weight", "blocks.1.mlp.fc1.weight", "head.weight")
    ]
    assert scales == sorted(scales)
    assert scales[-1] == 1
    assert scales[0] < scales[1] < scales[2]
    model = make_network(ALONE).weights
    optimizer = make_optimizer(model, "adamw", 1e-3, 0.05, layer_decay=0.5)
    set_lr(optimizer, 0.1)
    assert {group["lr"] for group in optimizer.param_groups} >= {0.1, 0.05}


def test_frozen_blocks_stay_as_they_are(tmp_path: Path) -> None:
    config = replace(ALONE, freeze_blocks=1)
    start = {name: t.clone() for name, t in make_network(config).weights.state_dict().items()}
    trained = train_quickly(tmp_path, config).network.weights.state_dict()
    same = {name for name in start if torch.equal(start[name], trained[name])}
    frozen = {name for name in start if name.startswith(("blocks.0", "patch_embed", "pos", "cls"))}
    # A key's bias adds the same to all logits of a query: it stays where it started.
    assert frozen <= same
    assert {"blocks.1.mlp.fc1.weight", "head.weight", "norm.weight"}.isdisjoint(same)
    with pytest.raises(ValueError, match="freeze_blocks is 3; the network has 2 blocks"):
        make_network(replace(ALONE, freeze_blocks=3))
    with pytest.raises(ValueError, match="freeze_blocks is of sampling fixed"):
        make_network(replace(MINI_CONFIG, freeze_blocks=1))


# Precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_fp32(tmp_path: Path, precision: str) -> None:
    config = replace(ALONE, stages=(Stage(2, 8),), drop_path_rate=0.0)
    train_quickly(tmp_path / "whole", config)
    state = train_quickly(tmp_path / "half", replace(config, precision=precision))
    assert state.skipped == 0
    assert state.scaler.is_enabled() == (precision == "fp16")
    pairs = zip(log_lines(tmp_path / "whole"), log_lines(tmp_path / "half"), strict=True)
    for one, other in pairs:
        if "loss" in one:
            assert other["loss"] == pytest.approx(one["loss"], abs=0.05)
    assert {t.dtype for t in state.network.state_dict().values()} == {torch.float32}


def test_precision_auto_is_settled_before_it_is_kept(tmp_path: Path) -> None:
    train_quickly(tmp_path, replace(ALONE, precision="auto"), stop_at=1)
    kept = json.loads((tmp_path / "config.json").read_text())["precision"]
    assert kept == resolve_precision("auto", CPU)
    assert kept in ("fp32", "bf16")
    assert resolve_precision("fp16", CPU) == "fp16"


# Weights


def test_average_follows_the_weights(tmp_path: Path) -> None:
    states = [train_quickly(tmp_path, ALONE, stop_at=number) for number in (3, 4)]
    (old, _), (average, new) = ((s.ema.module.state_dict(), s.network.state_dict()) for s in states)
    decay = states[1].ema.get_decay(4)
    assert 0.5 < decay < 0.7  # of the warm-up
    for name, tensor in average.items():
        expected = decay * old[name] + (1 - decay) * new[name]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)


def test_final_weights_are_a_supernet_that_extraction_opens(tmp_path: Path) -> None:
    state = train_quickly(tmp_path, MINI_CONFIG)
    supernet = load_supernet(tmp_path / WEIGHTS)
    assert supernet.sizes == MINI.supernet
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        ours = extract_subnet(supernet, MINI.smallest)(x)
        torch.testing.assert_close(ours, state.ema.module(x, MINI.smallest), rtol=0, atol=1e-5)
    assert isinstance(averaged_weights(tmp_path), SupernetWeights)


def test_subnet_trained_alone_is_a_static_network_of_its_size(tmp_path: Path) -> None:
    state = train_quickly(tmp_path, ALONE)
    assert isinstance(state.network, FixedSubnet)
    assert state.network.weights.cfg == SubnetConfig.from_json(ALONE.subnet)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in state.network.weights.blocks]
    assert rates == [0.0, pytest.approx(0.05)]  # of the supernet's three blocks
    weights = open_checkpoint(tmp_path / WEIGHTS).subnet()
    assert weights.subnet == state.network.weights.cfg
    assert isinstance(averaged_weights(tmp_path), SubnetWeights)
    assert list(log_lines(tmp_path)[-1]["held_out_acc1_percent"]) == ["subnet"]


def test_supernet_is_not_compiled_again_for_each_subnet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compile would compile again for each subnet"):
        train_quickly(tmp_path, MINI_CONFIG, compile=True)


@pytest.mark.slow  # the compiler takes its time
def test_compiled_subnet_trains_as_the_plain_one(tmp_path: Path) -> None:
    config = replace(ALONE, stages=(Stage(1, 16),), drop_path_rate=0.0)
    train_quickly(tmp_path / "plain", config)
    train_quickly(tmp_path / "compiled", config, compile=True)
    pairs = zip(log_lines(tmp_path / "plain"), log_lines(tmp_path / "compiled"), strict=True)
    for one, other in pairs:
        loss = float(one.get("loss", math.nan)), float(other.get("loss", math.nan))
        assert loss[1] == pytest.approx(loss[0], abs=1e-3, nan_ok=True)
