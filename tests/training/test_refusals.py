"""What is refused before hours are spent: sizes, teachers, devices, configs, wrong files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import autoformer_zoo as az
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.weights.checkpoint import CheckpointError, SubnetWeights, save_subnet
from autoformer_zoo.weights.layouts import Architecture
from tests.helpers.made_training import ALONE, MINI_CONFIG, split_in_memory
from training.config import DistillConfig, Stage, TrainConfig, WeightsConfig
from training.data import open as data_open
from training.engine.losses import open_teacher
from training.engine.network import make_network
from training.reproduce.separate import make_separate
from training.run.distributed import device_of
from training.train import main

CPU = torch.device("cpu")
NANO = replace(ALONE, subnet="", weights=WeightsConfig(model="autoformer_nano"))


@pytest.fixture(autouse=True)
def made_up_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_open, "load_train", split_in_memory)


# By the command: exit code 2, one line, nothing written


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--stages", "1:8", "1:17"], "stage 1:17: the network's patches have 4 px; expected a"),
        (["--device", "meta"], "device is 'meta', which cannot be used here; expected cpu, cuda"),
        (["--distill.teacher", "resnet1"], "distill.teacher is 'resnet1', which timm does not kn"),
        (["--initial", "nowhere"], "nowhere/config.json is not there; expected the directory of"),
        (["--weights.checkpoint", "no.pth"], "no.pth: No such file or directory"),
        (["--space", '{"depth": 3}'], "missing keys"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistake_is_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], text: str
) -> None:
    paths = ["--data-dir", str(tmp_path), "--out", str(tmp_path / "run")]
    assert main([*paths, "--preset", "smoke", "--batch-size", "8", *flags]) == 2
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


# Sizes


@pytest.mark.parametrize(
    ("size", "near"), [(17, 16), (30, 32), (2, 4)], ids=["above", "below", "no patch"]
)
@pytest.mark.parametrize(
    ("make", "config"),
    [
        (make_network, MINI_CONFIG),
        (make_network, ALONE),
        (make_network, NANO),
        (make_separate, MINI_CONFIG),
    ],
    ids=["supernet", "subnet", "model", "separate"],
)
def test_stage_that_is_no_multiple_of_the_patch_is_refused(
    make: Callable[[TrainConfig], object], config: TrainConfig, size: int, near: int
) -> None:
    with pytest.raises(ValueError, match=f"stage 1:{size}: .* 4 px; expected .* as 1:{near}$"):
        make(replace(config, stages=(Stage(1, size),)))


# Teachers


def teacher(name: str, checkpoint: Path | str = "") -> TrainConfig:
    return replace(MINI_CONFIG, distill=DistillConfig(name, str(checkpoint)))


def test_unknown_teacher_is_told_with_the_nearest() -> None:
    text = r"distill\.teacher is 'resnet181', which timm does not know; the nearest are resnet18"
    with pytest.raises(ValueError, match=text):
        open_teacher(teacher("resnet181", "x.pth"), 4, CPU)
    with pytest.raises(ValueError, match=r"timm\.list_models\(\) has all"):
        open_teacher(teacher("???"), 4, CPU)


def test_teacher_of_another_input_size_is_refused(tmp_path: Path) -> None:
    model = timm.create_model("deit_tiny_patch16_224", num_classes=4)
    torch.save(model.state_dict(), tmp_path / "deit.pth")
    text = r"deit_tiny_patch16_224 cannot read images of \d+ px \(Input height .*\); .* 224 px al"
    with pytest.raises(ValueError, match=text):
        open_teacher(teacher("deit_tiny_patch16_224", tmp_path / "deit.pth"), 4, CPU)


@pytest.mark.parametrize("name", ["junk.safetensors", "junk.pth", "list.pth", "other.safetensors"])
def test_teachers_file_of_any_other_kind_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    torch.save([1, 2], tmp_path / "list.pth")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=f"{name} is no test_efficientnet of 4 .*: .") as told:
        open_teacher(teacher("test_efficientnet", tmp_path / name), 4, CPU)
    assert "\n" not in str(told.value)


def test_missing_file_of_a_teacher_is_named() -> None:
    text = r"distill\.checkpoint no\.pth is not there; expected a file of weights"
    with pytest.raises(CheckpointError, match=text):
        open_teacher(teacher("test_efficientnet", "no.pth"), 4, CPU)


# Devices


@pytest.mark.parametrize("name", ["meta", "nonsense", "", "cuda:99", "xpu:99"])
def test_device_that_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"device is '{name}', which cannot be used here; expect"):
        device_of(name)


def test_device_auto_is_one_that_can_be_used() -> None:
    assert device_of("auto").type in ("cpu", "cuda")
    assert device_of("cpu") == CPU


# Weights to start from


def test_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "other.pth")
    weights = WeightsConfig(checkpoint=str(tmp_path / "other.pth"))
    for config in (MINI_CONFIG, ALONE):
        with pytest.raises(CheckpointError, match=r"other\.pth: bn1\.num_batches_tracked is of"):
            make_network(replace(config, weights=weights))


def test_weights_for_other_channels_are_refused(tmp_path: Path) -> None:
    subnet = az.SubnetConfig.from_json(ALONE.subnet)
    network = AutoFormer(subnet, img_size=16, patch_size=4, num_classes=4, in_chans=1)
    net = Architecture(subnet, (16, 16), (4, 4), in_chans=1, num_classes=4)
    save_subnet(SubnetWeights(network.state_dict(), net), tmp_path / "grey.safetensors")
    weights = WeightsConfig(checkpoint=str(tmp_path / "grey.safetensors"))
    with pytest.raises(ValueError, match=r"grey\.safetensors is for 1 channels; expected 3, as"):
        make_network(replace(ALONE, weights=weights))
