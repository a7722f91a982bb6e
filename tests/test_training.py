"""Supernet training: slicing, determinism, resuming, the data's splits, the commands."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoformer_zoo.checkpoint import load_supernet
from autoformer_zoo.extract import extract_subnet, slice_supernet
from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SubnetConfig
from training import choose as choose_module
from training import data as data_module
from training import train as train_module
from training.choose import choose
from training.commands import run_choose, run_train
from training.config import SMOKE, Stage, TrainConfig
from training.data import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    Pictures,
    epoch_order,
    eval_batch,
    held_out_indices,
    load_train,
    train_batch,
)
from training.supernet import Supernet
from training.train import plan_step, sample_subnet, train

NANO = SPACES["nano"]


def make_pictures(count: int = 40) -> Pictures:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Pictures(images, torch.arange(count) % 10)


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on made-up pictures, and refuse the test set."""

    def refuse(root: Path) -> Pictures:
        raise AssertionError("training opened the test set")

    split = lambda root, held_out, seed: (make_pictures(40), make_pictures(20))  # noqa: E731
    monkeypatch.setattr(train_module, "load_train", split)
    monkeypatch.setattr(choose_module, "load_train", split)
    monkeypatch.setattr(data_module, "load_test", refuse)


CONFIG = replace(
    SMOKE, stages=(Stage(1, 8), Stage(1, 16)), batch_size=8, log_every=1, checkpoint_every=3
)


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


def test_sampled_subnet_follows_from_seed_and_step() -> None:
    drawn = [sample_subnet(NANO, 0, step) for step in range(50)]
    assert drawn == [sample_subnet(NANO, 0, step) for step in range(50)]
    assert drawn != [sample_subnet(NANO, 1, step) for step in range(50)]
    assert {subnet.embed_dim for subnet in drawn} == {128, 160, 192}


def test_plan_follows_stages_warm_up_and_cosine() -> None:
    config = replace(CONFIG, warmup_fraction=0.2, min_lr_ratio=0.1)
    plans = [plan_step(config, step, steps_per_epoch=10) for step in range(20)]
    assert [plan.img_size for plan in plans] == [8] * 10 + [16] * 10
    assert [plan.batch_in_epoch for plan in plans] == list(range(10)) * 2
    assert [plan.lr_scale for plan in plans[:4]] == [0.25, 0.5, 0.75, 1.0]
    falling = [plan.lr_scale for plan in plans[4:]]
    assert falling == sorted(falling, reverse=True)
    assert 0.1 < falling[-1] < 0.12


def test_training_resumed_equals_undisturbed(tmp_path: Path, no_data: None) -> None:
    whole = train(CONFIG, tmp_path, tmp_path / "whole", progress=False)
    torch.manual_seed(99)

    class KilledError(Exception):
        pass

    def kill(state: object, *rest: object) -> None:
        if state.step == 5:  # two steps after the last checkpoint
            raise KilledError
        original(state, *rest)

    original = train_module.take_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "take_step", kill)
        with pytest.raises(KilledError):
            train(CONFIG, tmp_path, tmp_path / "cut", progress=False)
    again = train(CONFIG, tmp_path, tmp_path / "cut", progress=False)

    assert again.step == whole.step == 10
    for module in ("supernet", "ema"):
        one, other = (getattr(state, module).state_dict() for state in (whole, again))
        assert all(torch.equal(one[name], other[name]) for name in one)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    for line in (*logs[0], *logs[1]):
        line.pop("seconds")
    assert logs[0] == logs[1]


def test_training_refuses_to_resume_another_config(tmp_path: Path, no_data: None) -> None:
    short = replace(CONFIG, stages=(Stage(1, 8),))
    train(short, tmp_path, tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"holds a run with lr=0\.001, asked for 0\.5"):
        train(replace(short, lr=0.5), tmp_path, tmp_path / "run", progress=False)


def test_training_skips_and_counts_losses_that_are_not_finite(
    tmp_path: Path, no_data: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, stages=(Stage(1, 8),))
    monkeypatch.setattr(
        train_module, "compute_loss", lambda *rest: torch.tensor(float("nan"), requires_grad=True)
    )
    state = train(config, tmp_path, tmp_path / "run", progress=False)
    assert state.skipped == state.step == 5
    assert all(torch.isfinite(p).all() for p in state.supernet.parameters())


def test_run_directory_says_what_it_was_made_with(tmp_path: Path, no_data: None) -> None:
    config = replace(CONFIG, stages=(Stage(1, 8),))
    train(config, tmp_path, tmp_path / "run", progress=False)
    assert TrainConfig.from_json((tmp_path / "run" / "config.json").read_text()) == config
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_choose_writes_the_supernet_and_opens_the_test_set_once(
    tmp_path: Path, no_data: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(replace(CONFIG, stages=(Stage(1, 8),)), tmp_path, tmp_path / "run", progress=False)
    opened: list[Path] = []
    monkeypatch.setattr(
        choose_module, "load_test", lambda root: opened.append(root) or make_pictures(20)
    )
    measured = choose(tmp_path / "run", tmp_path, tmp_path / "nano.safetensors", 3, 2)
    assert len(opened) == 1
    supernet = load_supernet(tmp_path / "nano.safetensors")
    assert supernet.sizes == NANO.supernet
    assert {tensor.dtype for tensor in supernet.tensors.values()} == {torch.float16}
    assert NANO.contains(SubnetConfig.from_dict(measured["chosen"]))
    best = max(each["acc1_percent"] for each in measured["held_out"])
    assert measured["held_out_acc1_percent"] == best
    assert len(measured["random_test_acc1_percent"]) == 2


def test_held_out_is_even_fixed_and_apart() -> None:
    labels = torch.arange(1000) % 10
    held_out = held_out_indices(labels, 7, seed=0)
    assert torch.equal(held_out, held_out_indices(labels, 7, seed=0))
    assert not torch.equal(held_out, held_out_indices(labels, 7, seed=1))
    assert np.bincount(labels[held_out]).tolist() == [7] * 10


def test_epoch_order_is_a_permutation_that_differs_by_epoch() -> None:
    one, two = epoch_order(100, 0, 0), epoch_order(100, 0, 1)
    assert sorted(one.tolist()) == list(range(100))
    assert not torch.equal(one, two)


def test_train_batch_only_shifts_and_flips() -> None:
    ramp = torch.arange(32, dtype=torch.uint8)
    picture = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), ramp.expand(32, 32)])
    pictures = Pictures(picture.expand(64, 3, 32, 32), torch.zeros(64, dtype=torch.long))
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (CIFAR10_MEAN, CIFAR10_STD))
    x = train_batch(pictures, 32, seed=0, step=0) * std + mean
    middle = x[:, 0, 16, 8:24]  # far from the padding
    steps = middle.diff(dim=1).round()
    assert set(steps.unique().tolist()) == {-1.0, 1.0}  # both flips occur, nothing else
    assert 20 < (steps[:, 0] < 0).sum() < 44
    assert torch.equal(
        train_batch(pictures, 32, seed=0, step=5), train_batch(pictures, 32, seed=0, step=5)
    )


def test_eval_batch_normalises_and_resizes() -> None:
    grey = Pictures(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8), torch.zeros(1).long())
    x = eval_batch(grey, 16)
    assert x.shape == (1, 3, 16, 16)
    expected = (1 - torch.tensor(CIFAR10_MEAN)) / torch.tensor(CIFAR10_STD)
    torch.testing.assert_close(x[0, :, 3, 5], expected)


def test_missing_cifar10_says_where_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected .*cifar-10-batches-py"):
        load_train(tmp_path, 500, 0)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected a positive number"),
        ({"stages": ()}, "stages is empty"),
        ({"precision": "fp8"}, "precision is 'fp8'; expected fp32 or bf16"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; expected 0 or more, below 1"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_config_refuses_what_cannot_be_meant(values: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(SMOKE, **values)


def test_config_refuses_unknown_keys() -> None:
    with pytest.raises(ValueError, match=r"unknown keys \['learning_rate'\]"):
        TrainConfig.from_json('{"learning_rate": 1, "stages": []}')


def test_train_command_reports_a_mistake_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data-dir", str(tmp_path), "--out", str(tmp_path / "run")]
    assert run_train(arguments) == 2
    assert "no whole CIFAR-10" in capsys.readouterr().err
    assert run_train([*arguments, "--overrides", '{"space": "huge"}']) == 2
    assert "space 'huge' is unknown; expected one of" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_choose_command_names_the_missing_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--run", str(tmp_path), "--data-dir", str(tmp_path), "--out", "x.safetensors"]
    assert run_choose(arguments) == 2
    assert "config.json" in capsys.readouterr().err


@pytest.mark.data
def test_smoke_preset_trains_on_real_pictures(tmp_path: Path, cifar10: Path) -> None:
    state = train(SMOKE, cifar10, tmp_path / "run", progress=False)
    assert state.step == 10
    assert state.skipped == 0


@pytest.mark.data
def test_embedded_nano_classifies_cifar10(cifar10: Path) -> None:
    import autoformer_zoo as az
    from training.evaluate import accuracy

    held_out = load_train(cifar10, 500, 0)[1].select(torch.arange(0, 5000, 5))
    model = az.create_model("autoformer_nano", pretrained=True).eval()
    assert accuracy(model, held_out, 32) > 55


@pytest.mark.data
def test_picture_transform_agrees_with_training_batches(cifar10: Path) -> None:
    import autoformer_zoo as az
    from autoformer_zoo.predict import predict

    held_out = load_train(cifar10, 500, 0)[1].select(torch.arange(8))
    model = az.create_model("autoformer_nano", pretrained=True).eval()
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in held_out.images]
    best = [prediction[0].probability for prediction in predict(model, pictures, top_k=1)]
    with torch.no_grad():
        expected = model(eval_batch(held_out, 32)).softmax(1).max(1).values
    torch.testing.assert_close(torch.tensor(best), expected, rtol=0, atol=1e-4)


def test_step_speed_reports_every_form_against_the_explicit_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from training.step_speed import main

    assert main(["--batch-size", "2", "--rounds", "3", "--form", "decomposed"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["what"] for row in rows] == ["decomposed fp32", "explicit fp32"]
    assert rows[1]["speed_over_explicit_fp32"] == 1
    assert main(["--space", "huge"]) == 2
    assert "space 'huge' is unknown" in capsys.readouterr().err
