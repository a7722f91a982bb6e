"""What a step computes: subnets, losses, optimizer, precision, weights to start from."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config

from autoformer_zoo.factory import extract_subnet
from autoformer_zoo.network.supernet import Supernet
from autoformer_zoo.published import CIFAR10_MEAN, CIFAR10_STD
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import (
    CheckpointError,
    SubnetWeights,
    SupernetWeights,
    open_checkpoint,
    save_supernet,
)
from autoformer_zoo.weights.layouts import Architecture
from autoformer_zoo.weights.pretrained import load_supernet
from tests.helpers.made_training import (
    ALONE,
    MINI,
    MINI_CONFIG,
    QUICK,
    log_lines,
    make_images,
    split_in_memory,
)
from training.config import AugmentConfig, DistillConfig, Stage, TrainConfig, WeightsConfig
from training.data import open as data_open
from training.data.batch import Batch, epoch_order
from training.data.cifar10 import eval_batch, train_batch
from training.engine import losses, step
from training.engine.loop import make_state
from training.engine.losses import Mixer, Teacher, answer_loss, label_loss, open_teacher
from training.engine.network import FixedSubnet, make_network
from training.engine.sampling import parse_subnet, sample_subnet, subnets_of_step
from training.engine.step import make_optimizer, set_lr
from training.engine.weights import WEIGHTS, averaged_weights
from training.train import resolve_precision, train

CPU = torch.device("cpu")
SANDWICH = replace(MINI_CONFIG, sampling="sandwich")


@pytest.fixture(autouse=True)
def made_up_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_open, "load_train", split_in_memory)


def run(out: Path, config: TrainConfig, stop_at: int | None = None) -> step.RunState:
    return train(config, out, out, progress=False, stop_at=stop_at, resources=QUICK)


# Sampling


def test_sampled_subnet_follows_from_seed_and_step() -> None:
    drawn = [sample_subnet(MINI, 0, number) for number in range(50)]
    assert drawn == [sample_subnet(MINI, 0, number) for number in range(50)]
    assert drawn != [sample_subnet(MINI, 1, number) for number in range(50)]
    assert {subnet.embed_dim for subnet in drawn} == {32, 64}


def test_each_sampling_has_its_subnets() -> None:
    assert subnets_of_step(MINI_CONFIG, MINI, None, 3) == (sample_subnet(MINI, 0, 3),)
    largest, smallest, *drawn = subnets_of_step(SANDWICH, MINI, None, 3)
    assert (largest, smallest) == (MINI.largest, MINI.smallest)
    assert len(drawn) == SANDWICH.sandwich_random
    assert all(MINI.contains(subnet) for subnet in drawn)
    assert subnets_of_step(SANDWICH, MINI, None, 4)[2:] != tuple(drawn)
    fixed = SubnetConfig.from_json(ALONE.subnet)
    assert subnets_of_step(ALONE, MINI, fixed, 3) == (fixed,)


def test_subnet_may_be_a_name_or_json() -> None:
    assert parse_subnet("autoformer_tiny").embed_dim == 192
    assert parse_subnet(MINI.smallest.to_json()) == MINI.smallest
    with pytest.raises(ValueError, match="subnet is 'huge'; expected a SubnetConfig as JSON or"):
        parse_subnet("huge")


def test_sandwich_teaches_the_others_by_the_largest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        seen.append((logits, answers))
        return answer_loss(logits, answers)

    monkeypatch.setattr(step, "answer_loss", note)
    config = replace(SANDWICH, drop_path_rate=0.0, sandwich_random=1)
    state = run(tmp_path, config, stop_at=1)
    assert len(seen) == 2
    assert torch.equal(seen[0][1], seen[1][1])
    assert not seen[0][1].requires_grad
    start = make_state(config, CPU).network
    images = split_in_memory()[0]
    chosen = images.select(epoch_order(40, 0, 0)[:8])
    logits = start(train_batch(chosen, 8, 0, 0), MINI.largest)
    torch.testing.assert_close(seen[0][1], logits.detach())
    first = F.cross_entropy(logits, chosen.labels, label_smoothing=0.1)
    others = sum(answer_loss(*each) for each in seen)
    expected = ((first + others) / 3).item()
    assert log_lines(tmp_path)[0]["loss"] == pytest.approx(expected, abs=1e-5)
    assert state.step == 1


# Losses


def test_answer_loss_is_least_for_equal_answers() -> None:
    answers = torch.randn(5, 4)
    entropy = -(answers.softmax(1) * answers.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(answer_loss(answers, answers), entropy)
    assert answer_loss(torch.randn(5, 4), answers) > entropy


def test_label_loss_halves_between_labels_and_teacher() -> None:
    logits, labels, taught = torch.randn(6, 4), torch.arange(6) % 4, torch.zeros(6).long()
    smoothed = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(label_loss(logits, labels, None, MINI_CONFIG), smoothed)
    expected = (smoothed + F.cross_entropy(logits, taught)) / 2
    torch.testing.assert_close(label_loss(logits, labels, taught, MINI_CONFIG), expected)
    assert label_loss(logits.bfloat16(), labels, None, MINI_CONFIG).dtype == torch.float32


def test_mixtures_follow_from_seed_step_and_part() -> None:
    config = replace(MINI_CONFIG, augment=AugmentConfig(mixup=0.8, cutmix=1.0))
    mixer = Mixer(config, 4)

    def mixed(number: int, part: int) -> tuple[torch.Tensor, torch.Tensor]:
        images = make_images(8)
        return mixer.mix(Batch(eval_batch(images, 8), images.labels), number, part)

    x, targets = mixed(1, 0)
    again, same = mixed(1, 0)
    assert torch.equal(x, again)
    assert torch.equal(targets, same)
    assert not torch.equal(x, mixed(2, 0)[0])
    assert not torch.equal(x, mixed(1, 1)[0])
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    assert Mixer(MINI_CONFIG, 4).mix(Batch(x, targets), 0, 0)[0] is x


@pytest.mark.parametrize("sampling", ["uniform", "sandwich"])
def test_mixed_batches_train(tmp_path: Path, sampling: str) -> None:
    augment = AugmentConfig(mixup=0.8, cutmix=1.0, mix_mode="elem")
    config = replace(MINI_CONFIG, augment=augment, sampling=sampling)
    assert run(tmp_path, config, stop_at=2).skipped == 0


# Teachers


def test_teacher_sees_images_in_its_own_normalisation() -> None:
    class Probe(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = x
            return x.mean((2, 3))

    probe = Probe()
    own, given = ((0.5, 0.5, 0.5), (0.5, 0.25, 0.5)), ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    image = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in given)
    answers = Teacher(probe, own, given).labels((image - mean) / std)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in own)
    torch.testing.assert_close(probe.seen, (image - mean) / std)
    assert answers.shape == (2,)


def test_teachers_file_is_used_and_checked(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = timm.create_model("test_vit", num_classes=4, img_size=16)
    teacher = timm.create_model("test_efficientnet", num_classes=4).eval()
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    torch.save(model.state_dict(), tmp_path / "other.pth")
    config = replace(
        MINI_CONFIG,
        distill=DistillConfig("test_efficientnet", str(tmp_path / "teacher.pth")),
    )
    opened = open_teacher(config, 4, CPU)
    assert opened is not None
    x, spread = torch.randn(3, 3, 32, 32), torch.tensor(CIFAR10_STD).view(3, 1, 1)
    centre = torch.tensor(CIFAR10_MEAN).view(3, 1, 1)
    own = resolve_model_data_config(teacher)
    mean, std = (torch.tensor(own[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = teacher((x * spread + centre - mean) / std).argmax(1)
    assert torch.equal(opened.labels(x), expected)
    assert run(tmp_path / "run", config, stop_at=1).skipped == 0
    wrong = replace(config, distill=DistillConfig("test_efficientnet", str(tmp_path / "other.pth")))
    with pytest.raises(CheckpointError, match=r"other\.pth is no test_efficientnet of 4 classes"):
        open_teacher(wrong, 4, CPU)
    assert open_teacher(MINI_CONFIG, 4, CPU) is None


def test_pretrained_teacher_of_other_classes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = timm.create_model("test_efficientnet", num_classes=10)
    monkeypatch.setattr(losses.timm, "create_model", lambda *_, **__: made)
    config = replace(MINI_CONFIG, distill=DistillConfig("test_efficientnet"))
    with pytest.raises(ValueError, match="test_efficientnet has 10 classes, the data 4; give"):
        open_teacher(config, 4, CPU)


# Optimizer


def groups_of(config: TrainConfig) -> dict[str, dict[str, float]]:
    model = make_network(config).weights
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, config)
    return {
        names[id(parameter)]: {"decay": group["weight_decay"], "scale": group.get("lr_scale", 1.0)}
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_weight_decay_leaves_positions_and_tables_alone_but_for_upstreams_rule() -> None:
    clean, upstream = groups_of(MINI_CONFIG), groups_of(replace(MINI_CONFIG, decay_rule="upstream"))
    kept = {name for name, group in clean.items() if group["decay"] == 0}
    matrices = {name for name in clean if name.endswith("weight") and "norm" not in name}
    assert set(clean) - kept == matrices
    tables = {name for name in clean if name.endswith("rel_pos")}
    assert {name for name in clean if clean[name] != upstream[name]} == tables
    assert len(tables) == 3


def test_layer_decay_lowers_rates_towards_the_input() -> None:
    groups = groups_of(replace(ALONE, layer_decay=0.5))
    scales = [
        groups[name]["scale"]
        for name in ("pos_embed", "blocks.0.norm1.weight", "blocks.1.mlp.fc1.weight", "head.weight")
    ]
    assert scales == sorted(scales)
    assert scales[-1] == 1
    assert scales[0] < scales[1] < scales[2]
    model = make_network(ALONE).weights
    optimizer = make_optimizer(model, replace(ALONE, layer_decay=0.5))
    set_lr(optimizer, 0.1)
    assert {group["lr"] for group in optimizer.param_groups} >= {0.1, 0.05}


def test_frozen_blocks_stay_as_they_are(tmp_path: Path) -> None:
    config = replace(ALONE, freeze_blocks=1)
    start = {name: t.clone() for name, t in make_network(config).weights.state_dict().items()}
    trained = run(tmp_path, config).network.weights.state_dict()
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
    run(tmp_path / "whole", config)
    state = run(tmp_path / "half", replace(config, precision=precision))
    assert state.skipped == 0
    assert state.scaler.is_enabled() == (precision == "fp16")
    pairs = zip(log_lines(tmp_path / "whole"), log_lines(tmp_path / "half"), strict=True)
    for one, other in pairs:
        if "loss" in one:
            assert other["loss"] == pytest.approx(one["loss"], abs=0.05)
    assert {t.dtype for t in state.network.state_dict().values()} == {torch.float32}


def test_precision_auto_is_settled_before_it_is_kept(tmp_path: Path) -> None:
    run(tmp_path, replace(ALONE, precision="auto"), stop_at=1)
    kept = json.loads((tmp_path / "config.json").read_text())["precision"]
    assert kept == resolve_precision("auto", CPU)
    assert kept in ("fp32", "bf16")
    assert resolve_precision("fp16", CPU) == "fp16"


# Weights


def test_final_weights_are_a_supernet_that_extraction_opens(tmp_path: Path) -> None:
    state = run(tmp_path, MINI_CONFIG)
    supernet = load_supernet(tmp_path / WEIGHTS)
    assert supernet.sizes == MINI.supernet
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        ours = extract_subnet(supernet, MINI.smallest)(x)
        torch.testing.assert_close(ours, state.ema.module(x, MINI.smallest), rtol=0, atol=1e-5)
    assert isinstance(averaged_weights(tmp_path), SupernetWeights)


def test_subnet_trained_alone_is_a_static_network_of_its_size(tmp_path: Path) -> None:
    state = run(tmp_path, ALONE)
    assert isinstance(state.network, FixedSubnet)
    assert state.network.weights.cfg == SubnetConfig.from_json(ALONE.subnet)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in state.network.weights.blocks]
    assert rates == [0.0, pytest.approx(0.05)]  # of the supernet's three blocks
    weights = open_checkpoint(tmp_path / WEIGHTS).subnet()
    assert weights.subnet == state.network.weights.cfg
    assert isinstance(averaged_weights(tmp_path), SubnetWeights)
    assert list(log_lines(tmp_path)[-1]["held_out_acc1_percent"]) == ["subnet"]


@pytest.fixture
def supernet_file(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    made = Supernet(MINI)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    tensors = {name: t.contiguous() for name, t in made.weights.state_dict().items()}
    weights = SupernetWeights(tensors, Architecture.of_space(MINI), "packed_prefix")
    save_supernet(weights, tmp_path / "supernet.safetensors")
    return tmp_path / "supernet.safetensors"


def test_official_supernet_goes_on_under_its_own_bias_rule(
    tmp_path: Path, supernet_file: Path
) -> None:
    config = replace(MINI_CONFIG, weights=WeightsConfig(checkpoint=str(supernet_file)))
    network = make_network(config).eval()
    assert isinstance(network, Supernet)
    assert network.bias_rule == "packed_prefix"
    subnet, x = MINI.smallest, torch.randn(2, 3, 16, 16)
    expected = extract_subnet(load_supernet(supernet_file), subnet)(x)
    torch.testing.assert_close(network(x, subnet), expected, rtol=0, atol=1e-5)
    run(tmp_path / "run", config)
    assert load_supernet(tmp_path / "run" / WEIGHTS).bias_rule == "packed_prefix"


def test_supernet_of_another_space_is_refused(supernet_file: Path) -> None:
    weights = WeightsConfig(checkpoint=str(supernet_file))
    with pytest.raises(ValueError, match=r"supernet\.safetensors holds the supernet .*name its"):
        make_network(replace(MINI_CONFIG, space="nano", weights=weights))


def test_subnet_is_retrained_from_inherited_weights(supernet_file: Path) -> None:
    weights = WeightsConfig(checkpoint=str(supernet_file))
    network = make_network(replace(ALONE, weights=weights)).eval()
    subnet, x = SubnetConfig.from_json(ALONE.subnet), torch.randn(2, 3, 16, 16)
    expected = extract_subnet(load_supernet(supernet_file), subnet)(x)
    torch.testing.assert_close(network(x, subnet), expected, rtol=0, atol=1e-5)


def test_supernet_is_not_compiled_anew_for_each_subnet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compile would compile anew for each subnet"):
        train(MINI_CONFIG, tmp_path, tmp_path, False, resources=replace(QUICK, compile=True))


@pytest.mark.slow  # the compiler takes its time
def test_compiled_subnet_trains_as_the_plain_one(tmp_path: Path) -> None:
    config = replace(ALONE, stages=(Stage(1, 16),), drop_path_rate=0.0)
    run(tmp_path / "plain", config)
    resources = replace(QUICK, compile=True)
    train(config, tmp_path, tmp_path / "compiled", False, resources=resources)
    pairs = zip(log_lines(tmp_path / "plain"), log_lines(tmp_path / "compiled"), strict=True)
    for one, other in pairs:
        loss = float(one.get("loss", math.nan)), float(other.get("loss", math.nan))
        assert loss[1] == pytest.approx(loss[0], abs=1e-3, nan_ok=True)
