"""The supernet, the schedule, configs and commands of training."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from autoformer_zoo.factory import extract_subnet
from autoformer_zoo.network.supernet import Supernet
from autoformer_zoo.published import SPACES, find_space
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.pretrained import load_supernet
from autoformer_zoo.weights.slicing import slice_supernet
from tests.helpers.made_training import MINI, MINI_CONFIG, split_in_memory
from training import finetune
from training import train as train_command
from training.config import Stage, TrainConfig
from training.data import open as data_open
from training.data.cifar10 import eval_batch, load_train
from training.presets import PRESETS, SMOKE
from training.run import command as commands
from training.run.schedule import Schedule, plan_step
from training.train import train

NANO = SPACES["nano"]
CONFIG = replace(MINI_CONFIG, stages=(Stage(1, 8), Stage(1, 16)))


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


def test_plan_follows_stages_warm_up_and_cosine() -> None:
    config = replace(CONFIG, warmup_fraction=0.2, min_lr_ratio=0.1)
    plans = [plan_step(config, step, steps_per_epoch=10) for step in range(20)]
    assert [plan.img_size for plan in plans] == [8] * 10 + [16] * 10
    assert [plan.batch_in_epoch for plan in plans] == list(range(10)) * 2
    assert [plan.lr_scale for plan in plans[:4]] == [0.25, 0.5, 0.75, 1.0]
    falling = [plan.lr_scale for plan in plans[4:]]
    assert falling == sorted(falling, reverse=True)
    assert 0.1 < falling[-1] < 0.12


def test_schedule_drops_what_is_left_over_of_a_batch() -> None:
    schedule = Schedule(CONFIG, num_images=23)
    assert (schedule.steps_per_epoch, schedule.total) == (2, 4)
    with pytest.raises(ValueError, match="7 images to train on, batch_size is 8"):
        Schedule(CONFIG, num_images=7)


def test_space_may_be_json() -> None:
    assert find_space(MINI.to_json()) == MINI
    with pytest.raises(ValueError, match="space 'huge' is unknown; expected one of tiny"):
        find_space("huge")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """Configs that commands train, without training them."""
    configs: list[TrainConfig] = []

    def note(config: TrainConfig, *_: object, **__: object) -> object:
        configs.append(config)
        return type("State", (), {"step": 1, "skipped": 0, "broken": 0, "seconds": 0.0})

    monkeypatch.setattr("training.train.train", note)
    return configs


PATHS = ["--data-dir", "data", "--out", "run"]


def test_every_field_is_a_flag_on_top_of_the_preset(
    seen: list[TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--preset", "nano", "--stages", "2:16", "1:32", "--augment.mixup", "0.8"]
    assert train_command.main([*PATHS, *flags, "--sampling", "sandwich", "--clip-grad=0.5"]) == 0
    expected = replace(
        PRESETS["nano"],
        stages=(Stage(2, 16), Stage(1, 32)),
        augment=replace(PRESETS["nano"].augment, mixup=0.8),
        sampling="sandwich",
        clip_grad=0.5,
    )
    assert seen == [expected]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["out"] == "run"


def test_commands_have_their_own_presets(seen: list[TrainConfig]) -> None:
    assert train_command.main([*PATHS, "--preset=smoke"]) == 0
    assert finetune.main([*PATHS, "--preset", "smoke"]) == 0
    assert train_command.main(PATHS) == 0
    assert seen == [SMOKE, finetune.SMOKE, PRESETS["cifar10"]]


def test_command_without_the_extra_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "find_spec", lambda name: None)
    assert train_command.main([]) == 2
    assert capsys.readouterr().err.endswith(
        "tqdm and matplotlib and scipy not installed: pip install 'autoformer_zoo[train]'\n"
    )


def test_train_command_reports_a_mistake_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data-dir", str(tmp_path), "--out", str(tmp_path / "run"), "--preset", "smoke"]
    assert train_command.main([*arguments, "--workers", "0"]) == 2
    assert "no whole CIFAR-10" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--stages", "ten"], "stage 'ten': expected EPOCHS:PIXELS"),
        (["--preset", "nope"], "invalid choice 'nope' for argument '--preset'. Expected one of"),
        (["--augment.mixupp", "1"], "Unrecognized options: --augment.mixupp, 1 (perhaps --augmen"),
        (["--seed", "one"], "Error parsing --seed: invalid literal for int()"),
        (["--lr", "-1"], "lr is -1.0; expected a value greater than 0"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_flags_are_told_in_one_line(
    seen: list[TrainConfig], capsys: pytest.CaptureFixture[str], flags: list[str], text: str
) -> None:
    assert train_command.main([*PATHS, *flags]) == 2
    out, err = capsys.readouterr()
    assert text in err
    assert (out, err.count("\n"), seen) == ("", 1, [])


def test_help_lists_the_presets_and_says_what_a_flag_is_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train_command.main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "imagenet-tiny" in text
    assert "run directory; an unfinished run in it goes on" in text


def test_unknown_space_is_told_before_a_directory_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data_open, "load_train", split_in_memory)
    arguments = ["--data-dir", str(tmp_path), "--out", str(tmp_path / "run")]
    assert (
        train_command.main(
            [*arguments, "--preset", "smoke", "--space", "huge", "--batch-size", "8"]
        )
        == 2
    )
    assert "space 'huge' is unknown; expected one of" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_failure_of_a_run_is_one_line_and_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.engine.loop import DivergedError

    def fail(*_: object, **__: object) -> None:
        raise DivergedError("run: give up at step 8")

    monkeypatch.setattr("training.train.train", fail)
    assert train_command.main([*PATHS, "--preset", "smoke"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("run: give up at step 8")


@pytest.mark.data
def test_smoke_preset_trains_on_real_images(tmp_path: Path, cifar10: Path) -> None:
    state = train(SMOKE, cifar10, tmp_path / "run", progress=False)
    assert state.step == 10
    assert state.skipped == 0


@pytest.mark.data
def test_embedded_nano_classifies_cifar10(cifar10: Path) -> None:
    import autoformer_zoo as az
    from training.search.evaluation import accuracy_on, memory_batches

    held_out = load_train(cifar10, 500, 0)[1].select(torch.arange(0, 5000, 5))
    model = az.create_model("autoformer_nano", pretrained=True).eval()
    assert accuracy_on(model, memory_batches(held_out, 32)) > 55


@pytest.mark.data
def test_image_transform_agrees_with_training_batches(cifar10: Path) -> None:
    import autoformer_zoo as az
    from autoformer_zoo.classify.predict import predict

    held_out = load_train(cifar10, 500, 0)[1].select(torch.arange(8))
    model = az.create_model("autoformer_nano", pretrained=True).eval()
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in held_out.images]
    best = [prediction[0].probability for prediction in predict(model, images, top_k=1)]
    with torch.no_grad():
        expected = model(eval_batch(held_out, 32)).softmax(1).max(1).values
    torch.testing.assert_close(torch.tensor(best), expected, rtol=0, atol=1e-4)
