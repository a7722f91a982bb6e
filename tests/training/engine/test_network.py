"""The network that a config trains, and the weights that it starts from."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from autoformer_zoo.models.factory import create_model, extract_subnet
from autoformer_zoo.network.supernet import Supernet
from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import (
    SupernetWeights,
    save_supernet,
)
from autoformer_zoo.weights.header import notes_to_cfg
from autoformer_zoo.weights.layouts import Architecture
from autoformer_zoo.weights.pretrained import load_supernet
from autoformer_zoo.weights.slicing import slice_supernet
from tests.helpers.made_training import ALONE, MINI, MINI_CONFIG, train_quickly
from training.engine.loop import make_state
from training.engine.network import make_network
from training.engine.sampling import parse_subnet
from training.engine.weights import WEIGHTS, averaged_weights
from training.reproduce.separate import make_separate
from training.run.checkpoints import load_checkpoint, save_checkpoint
from training.settings.config import DataConfig, Stage, TrainConfig, WeightsConfig

CPU = torch.device("cpu")
NANO = SPACES["nano"]
NANO_MODEL = replace(ALONE, subnet="", weights=WeightsConfig(model="autoformer_nano"))

pytestmark = pytest.mark.usefixtures("made_up_images")


# Laws of the supernet


def test_supernet_runs_what_extraction_gives() -> None:
    torch.manual_seed(0)
    supernet = Supernet(NANO).eval()
    rng = random.Random(1)
    x = torch.randn(2, 3, 32, 32)
    weights = load_supernet(supernet.weights.state_dict())
    for _ in range(3):
        subnet = NANO.sample(rng)
        with torch.no_grad():
            torch.testing.assert_close(
                supernet(x, subnet), extract_subnet(weights, subnet)(x), rtol=0, atol=2e-5
            )


def test_supernet_step_touches_only_the_subnet() -> None:
    supernet = Supernet(NANO)
    subnet = SubnetConfig(5, 128, (2,) * 5, (3.0,) * 5)
    supernet(torch.randn(2, 3, 16, 16), subnet).sum().backward()
    weights = supernet.weights
    qkv = weights.blocks[0].attn.qkv.weight.grad
    assert qkv[:128, :128].abs().min() > 0
    assert not qkv[128:192].any()
    assert not qkv[:, 128:].any()
    assert weights.blocks[5].mlp.fc1.weight.grad is None
    assert not weights.head.weight.grad[:, 128:].any()


def test_supernet_refuses_a_subnet_that_does_not_fit() -> None:
    supernet = Supernet(NANO)
    with pytest.raises(ValueError, match=r"blocks\.1\.attn needs 4 heads, the supernet has 3"):
        supernet(torch.zeros(1, 3, 32, 32), SubnetConfig(2, 128, (3, 4), (3.0, 3.0)))


def test_supernet_packed_bias_rule_changes_the_v_bias_only() -> None:
    supernet = Supernet(NANO)
    tensors = {name: torch.randn_like(p) for name, p in supernet.weights.named_parameters()}
    subnet = SubnetConfig(2, 128, (2, 3), (3.0, 3.0))
    clean = slice_supernet(tensors, NANO.supernet, subnet, "prefix")
    packed = slice_supernet(tensors, NANO.supernet, subnet, "packed_prefix")
    different = [name for name in clean if not torch.equal(clean[name], packed[name])]
    assert different == ["blocks.0.attn.qkv.bias"]


# Starting from another run


def first_run(out: Path, config: TrainConfig = MINI_CONFIG) -> str:
    """Train a step; returns the run directory."""
    train_quickly(out / "first", config, stop_at=1)
    return str(out / "first")


def test_run_starts_from_another_runs_weights_averages_and_bias_rule(tmp_path: Path) -> None:
    run = Path(first_run(tmp_path))
    first = load_checkpoint(run)
    save_checkpoint({**first, "bias_rule": "packed_prefix"}, run)
    start = make_state(replace(MINI_CONFIG, initial=str(run), lr=0.1), CPU)
    torch.testing.assert_close(dict(start.network.state_dict()), dict(first["network"]))
    torch.testing.assert_close(dict(start.ema.module.state_dict()), dict(first["ema"]))
    assert (start.network.bias_rule, start.ema.module.bias_rule) == ("packed_prefix",) * 2


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"seed": 1}, r"first has seed=0, requested 1: it may have learned from images that"),
        ({"held_out_per_class": 1}, "has held_out_per_class=2, requested 1: it may"),
        ({"data": DataConfig("folder")}, "has data.source='cifar10', requested 'folder': it may"),
        (
            {"data": DataConfig(train_split="half"), "seed": 2},
            "has seed=0, requested 2; data.train_split='train', requested 'half': it may .* same",
        ),
    ],
    ids=["seed", "held out", "source", "split"],
)
def test_other_held_out_images_are_refused_before_a_directory_is_made(
    tmp_path: Path, changes: dict[str, object], text: str
) -> None:
    config = replace(MINI_CONFIG, initial=first_run(tmp_path), **changes)
    with pytest.raises(ValueError, match=text):
        make_state(config, CPU)


def test_seed_is_free_where_a_split_of_its_own_is_held_out(tmp_path: Path) -> None:
    data = DataConfig(held_out_split="kept")
    config = replace(MINI_CONFIG, data=data)
    start = replace(config, initial=first_run(tmp_path, config), seed=5, held_out_per_class=0)
    assert make_state(start, CPU).step == 0


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (replace(MINI_CONFIG, num_classes=7), r"size mismatch for weights\.head\.weight: .*4, 64"),
        (replace(MINI_CONFIG, space="nano"), "trained another network: .* give the same space"),
        (ALONE, "trained another network: .* sampling"),
    ],
    ids=["classes", "space", "fixed"],
)
def test_another_network_is_refused(tmp_path: Path, config: TrainConfig, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_state(replace(config, initial=first_run(tmp_path)), CPU)


# Sizes


@pytest.mark.parametrize(
    ("size", "near"), [(17, 16), (30, 32), (2, 4)], ids=["above", "below", "no patch"]
)
@pytest.mark.parametrize(
    ("make", "config"),
    [
        (make_network, MINI_CONFIG),
        (make_network, ALONE),
        (make_network, NANO_MODEL),
        (make_separate, MINI_CONFIG),
    ],
    ids=["supernet", "subnet", "model", "separate"],
)
def test_stage_that_is_not_a_multiple_of_the_patch_is_refused(
    make: Callable[[TrainConfig], object], config: TrainConfig, size: int, near: int
) -> None:
    with pytest.raises(ValueError, match=f"stage 1:{size}: .* 4 px; expected .* as 1:{near}$"):
        make(replace(config, stages=(Stage(1, size),)))


# Weights


def test_subnet_may_be_a_name_or_json() -> None:
    assert parse_subnet("autoformer_tiny").embed_dim == 192
    assert parse_subnet(MINI.smallest.to_json()) == MINI.smallest
    with pytest.raises(ValueError, match="subnet is 'huge'; expected a SubnetConfig as JSON or"):
        parse_subnet("huge")


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


@pytest.mark.parametrize(
    ("config", "subnet"),
    [(MINI_CONFIG, MINI.smallest), (ALONE, SubnetConfig.from_json(ALONE.subnet))],
    ids=["supernet", "subnet"],
)
def test_official_supernets_subnets_keep_their_bias_rule(
    supernet_file: Path, config: TrainConfig, subnet: SubnetConfig
) -> None:
    weights = WeightsConfig(checkpoint=str(supernet_file))
    network, x = make_network(replace(config, weights=weights)).eval(), torch.randn(2, 3, 16, 16)
    expected = extract_subnet(load_supernet(supernet_file), subnet)(x)
    torch.testing.assert_close(network(x, subnet), expected, rtol=0, atol=1e-5)


def test_supernet_trained_from_an_official_one_has_its_bias_rule(
    tmp_path: Path, supernet_file: Path
) -> None:
    config = replace(MINI_CONFIG, weights=WeightsConfig(checkpoint=str(supernet_file)))
    train_quickly(tmp_path / "run", config)
    assert load_supernet(tmp_path / "run" / WEIGHTS).bias_rule == "packed_prefix"


def test_file_of_a_subnet_trained_alone_is_for_the_size_of_its_last_stage(tmp_path: Path) -> None:
    config = replace(ALONE, stages=(Stage(1, 8),))
    state = train_quickly(tmp_path, config)  # the space's size is 16
    model = create_model("autoformer_subnet", checkpoint_path=tmp_path / WEIGHTS).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = state.ema.module.eval()(x, parse_subnet(config.subnet))
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert model.pretrained_cfg["input_size"] == (3, 8, 8)


def test_origin_and_license_of_a_models_weights_are_kept(tmp_path: Path) -> None:
    weights = WeightsConfig(checkpoint="autoformer_nano")
    config = replace(MINI_CONFIG, space="nano", stages=(Stage(1, 8),), weights=weights)
    train_quickly(tmp_path / "run", config, stop_at=1)
    notes = averaged_weights(tmp_path / "run").metadata
    assert notes["origin"].startswith("trained by autoformer_zoo on cifar10, from autoformer_nano")
    assert notes["license"] == "mit"


def test_origin_and_license_of_the_first_weights_are_kept(
    tmp_path: Path, supernet_file: Path
) -> None:
    supernet = load_supernet(supernet_file)
    notes = {"origin": "a friend", "license": "bsd"}
    save_supernet(replace(supernet, metadata=notes), supernet_file)
    config = replace(ALONE, weights=WeightsConfig(checkpoint=str(supernet_file)))
    train_quickly(tmp_path / "run", config)
    with safe_open(tmp_path / "run" / WEIGHTS, "pt") as file:
        kept = file.metadata()
    assert kept["origin"] == (
        "trained by autoformer_zoo on cifar10, from supernet.safetensors (a friend)"
    )
    assert kept["license"] == "bsd"
    assert notes_to_cfg(kept)["interpolation"] == "bilinear"  # of CIFAR-10 in memory


@pytest.mark.parametrize("classes", [4, 7])
@pytest.mark.parametrize("config", [MINI_CONFIG, ALONE], ids=["supernet", "subnet"])
def test_new_head_follows_from_the_seed_and_the_rest_is_kept(
    supernet_file: Path, config: TrainConfig, classes: int
) -> None:
    weights = WeightsConfig(checkpoint=str(supernet_file), new_head=classes == 4)
    config = replace(config, num_classes=classes, weights=weights)
    one, same, other = (
        make_network(replace(config, seed=seed)).weights.state_dict() for seed in (0, 0, 1)
    )
    assert one["head.weight"].shape[0] == classes
    assert torch.equal(one["head.weight"], same["head.weight"])
    assert not torch.equal(one["head.weight"], other["head.weight"])
    before = load_supernet(supernet_file).tensors["head.weight"]
    assert not torch.equal(one["head.weight"][:4], before[:, : one["head.weight"].shape[1]])
    kept = [name for name in one if not name.startswith("head")]
    assert all(torch.equal(one[name], other[name]) for name in kept)


def test_supernet_of_another_space_is_refused(supernet_file: Path) -> None:
    weights = WeightsConfig(checkpoint=str(supernet_file))
    with pytest.raises(ValueError, match=r"supernet\.safetensors holds the supernet .*name its"):
        make_network(replace(MINI_CONFIG, space="nano", weights=weights))
