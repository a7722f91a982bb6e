"""Fine-tuning: another head and input size, from the zoo or a file, by the loop of training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import autoformer_zoo as az
from autoformer_zoo.cli.main import main as cli
from tests.helpers.made_training import QUICK, log_lines, write_folder
from training.config import AugmentConfig, DataConfig, Stage, TrainConfig, WeightsConfig
from training.data.cifar10 import load_train
from training.data.transforms import NORMALISATIONS
from training.engine.network import make_network
from training.engine.weights import WEIGHTS
from training.finetune import CIFAR10, PRESETS, main, photos
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
    classes = {name: config.num_classes for name, config in PRESETS.items() if config.num_classes}
    assert classes == {
        "cifar10": 10,
        "cifar100": 100,
        "flowers": 102,
        "cars": 196,
        "pets": 37,
        "inaturalist": 8142,
    }


def write_photos(root: Path, count: int = 10, side: int = 40) -> Path:
    """Write noisy squares of three colours, train/CLASS/NAME; returns the root."""
    rng = np.random.default_rng(0)
    for name, color in zip(("blue", "green", "red"), np.eye(3)[::-1], strict=True):
        folder = root / "train" / name
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = rng.normal(50 + 150 * color, 40, (side, side, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def test_photos_are_learned_and_the_file_knows_their_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    paths = ["--data-dir", str(write_photos(tmp_path / "photos")), "--out", str(run)]
    short = ["--stages", "4:32", "--workers", "0", "--device", "cpu", "--batch-size", "8"]
    assert main([*paths, "--model", "autoformer_nano", *short]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["held_out_acc1_percent"]["subnet"] == 100
    assert "autoformer_nano has 10 classes, the data 3: its head is a new one" in err
    assert f"next: autoformer-zoo predict IMAGE --checkpoint {run / WEIGHTS}" in err
    assert {"curve.svg", "confusion.svg", "classes.json"} <= {path.name for path in run.iterdir()}

    model = az.create_model("autoformer_subnet", checkpoint_path=run / WEIGHTS)
    cfg = model.pretrained_cfg
    assert cfg["label_names"] == ("blue", "green", "red")
    assert (cfg["mean"], cfg["std"]) == (az.published.CIFAR10_MEAN, az.published.CIFAR10_STD)
    assert (cfg["interpolation"], cfg["crop_pct"], cfg["crop_mode"]) == ("bicubic", 1.0, "center")
    assert cfg["license"] == "mit"
    (origin,) = cfg["notes"]
    assert origin == "trained by autoformer_zoo on folder, from the weights of autoformer_nano"
    green = next(iter(az.predict(model, tmp_path / "photos" / "train" / "green" / "0.png")))
    assert green[0].label == "green"


@pytest.mark.parametrize("model", ["autoformer_nano", "autoformer_tiny"])
def test_photos_take_over_the_models_input(tmp_path: Path, model: str) -> None:
    config = photos(model, tmp_path)
    cfg = timm.get_pretrained_cfg(model)
    assert config.largest_size == cfg.input_size[-1]
    assert NORMALISATIONS[config.data.normalisation] == (tuple(cfg.mean), tuple(cfg.std))
    assert (config.data.crop_pct, config.data.interpolation) == (cfg.crop_pct, cfg.interpolation)
    assert (config.data.held_out_split, config.held_out_per_class) == ("", 0.2)
    (tmp_path / "val").mkdir()
    assert photos(model, tmp_path).data.held_out_split == "val"


def test_one_source_of_weights_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    paths = ["--data-dir", "photos", "--out", "run", "--model", "autoformer_nano"]
    assert main([*paths, "--weights.checkpoint", "x.pth"]) == 2
    assert "--model autoformer_nano and --weights both name weights" in capsys.readouterr().err


@pytest.mark.data
def test_story_from_photos_to_a_deployed_file(
    tmp_path: Path, cifar10: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_images, _ = load_train(cifar10, 0, 0)
    for label, name in ((3, "cat"), (8, "ship"), (6, "frog")):
        positions = (train_images.labels == label).nonzero().squeeze(1)[:50].tolist()
        for number, position in enumerate(positions):
            folder = tmp_path / "photos" / ("train" if number < 40 else "val") / name
            folder.mkdir(parents=True, exist_ok=True)
            pixels = train_images.images[position].permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / f"{number}.png")
    photos, mine = str(tmp_path / "photos"), str(tmp_path / "run" / WEIGHTS)
    paths = ["--data-dir", photos, "--out", str(tmp_path / "run"), "--workers", "0"]
    assert main([*paths, "--model", "autoformer_nano", "--stages", "5:32"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["held_out_acc1_percent"]["subnet"] > 70

    onnx, static = str(tmp_path / "mine.onnx"), ["--precision", "int8-static"]
    assert cli(["export", mine, onnx, *static, "--calibration", f"{photos}/train"]) == 0
    for backend in (["--checkpoint", mine], ["--backend", "onnxruntime", "--checkpoint", onnx]):
        capsys.readouterr()
        assert cli(["predict", f"{photos}/val/ship", *backend, "--json"]) == 0
        out = capsys.readouterr().out
        assert all(f'"{name}"' in out for name in ("cat", "frog", "ship"))
        assert json.loads(out)


def test_model_of_another_family_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "training.engine.network.create_model", lambda *_, **__: torch.nn.Identity()
    )
    with pytest.raises(ValueError, match="'autoformer_nano' is not an AutoFormer, but a Identity"):
        make_network(NANO)
