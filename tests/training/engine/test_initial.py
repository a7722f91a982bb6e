"""Starting from another run: its weights, and what must be alike for held-out images to count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.made_training import ALONE, MINI, MINI_CONFIG, QUICK, split_in_memory
from training.config import DataConfig, TrainConfig
from training.data import open as data_open
from training.engine.loop import make_state
from training.run.checkpoints import load_checkpoint, save_checkpoint
from training.train import train

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def made_up_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_open, "load_train", split_in_memory)


def first_run(out: Path, config: TrainConfig = MINI_CONFIG) -> str:
    """Train a step; returns the run directory."""
    train(config, out, out / "first", progress=False, stop_at=1, resources=QUICK)
    return str(out / "first")


def test_run_starts_from_another_runs_weights_and_averages(tmp_path: Path) -> None:
    first = load_checkpoint(Path(first_run(tmp_path)))
    start = make_state(replace(MINI_CONFIG, initial=str(tmp_path / "first"), lr=0.1), CPU)
    torch.testing.assert_close(dict(start.network.state_dict()), dict(first["network"]))
    torch.testing.assert_close(dict(start.ema.module.state_dict()), dict(first["ema"]))


def test_official_bias_rule_goes_on(tmp_path: Path) -> None:
    first = Path(first_run(tmp_path))
    save_checkpoint({**load_checkpoint(first), "bias_rule": "packed_prefix"}, first)
    state = make_state(replace(MINI_CONFIG, initial=str(first)), CPU)
    assert (state.network.bias_rule, state.ema.module.bias_rule) == ("packed_prefix",) * 2


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
        (replace(MINI_CONFIG, num_classes=7), r"head.* is \(4, 64\), here \(7, 64\), and 1 more"),
        (replace(MINI_CONFIG, space="nano"), "trained another network: .* give the same space"),
        (ALONE, r"trained another network: .* is \(1, 1, 64\), here \(1, 1, 32\), and .* sampling"),
    ],
    ids=["classes", "space", "fixed"],
)
def test_another_network_is_refused(tmp_path: Path, config: TrainConfig, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_state(replace(config, initial=first_run(tmp_path)), CPU)


def test_subnet_alone_may_be_the_supernets_own(tmp_path: Path) -> None:
    config = replace(ALONE, subnet=MINI.largest.to_json(), initial=first_run(tmp_path))
    assert make_state(config, CPU).network.weights.cfg == MINI.largest


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there; expected the direct"):
        make_state(replace(MINI_CONFIG, initial=str(tmp_path)), CPU)
