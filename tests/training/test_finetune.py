"""Fine-tuning: another head and input size, from the zoo or a file, by the loop of training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import timm
import torch

import autoformer_zoo as az
from autoformer_zoo.weights.checkpoint import save_supernet
from autoformer_zoo.weights.header import cfg_to_notes
from tests.helpers.made_photos import write_photos
from tests.helpers.made_search import make_weights
from tests.helpers.made_training import MINI, log_lines, train_quickly, write_folder
from training.data.transforms import NORMALISATIONS
from training.engine.network import make_network
from training.engine.weights import WEIGHTS
from training.finetune import main, photos
from training.settings.config import AugmentConfig, DataConfig, Stage, TrainConfig, WeightsConfig

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
    state = train_quickly(tmp_path / "run", NANO, folder)
    assert state.step == 2
    assert len(log_lines(tmp_path / "run")) == 3
    model = state.network.weights
    assert model.head.weight.shape == (4, az.SUBNETS["autoformer_nano"].embed_dim)
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


def test_fine_tuned_file_knows_its_classes_and_preprocessing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    photos = write_photos(tmp_path / "photos", train=10)
    paths = ["--data-dir", str(photos), "--out", str(run)]
    short = ["--stages", "2:32", "--workers", "0", "--device", "cpu", "--threads", "1"]
    assert main([*paths, "--model", "autoformer_nano", *short]) == 0
    out, err = capsys.readouterr()
    assert 0 <= json.loads(out.splitlines()[-1])["held_out_acc1_percent"]["subnet"] <= 100
    assert "autoformer_nano has 10 classes, the data 4: its head is a new one" in err
    assert f"next: autoformer-zoo predict IMAGE --checkpoint {run / WEIGHTS}" in err
    assert {"curve.svg", "confusion.svg", "classes.json"} <= {path.name for path in run.iterdir()}

    model = az.create_model("autoformer_subnet", checkpoint_path=run / WEIGHTS)
    cfg = model.pretrained_cfg
    assert cfg["label_names"] == ("blue", "green", "grey", "red")
    assert (cfg["mean"], cfg["std"]) == (az.published.CIFAR10_MEAN, az.published.CIFAR10_STD)
    assert (cfg["interpolation"], cfg["crop_pct"], cfg["crop_mode"]) == ("bicubic", 1.0, "center")
    assert cfg["license"] == "mit"
    (origin,) = cfg["notes"]
    assert origin == "trained by autoformer_zoo on folder, from the weights of autoformer_nano"
    assert not list(run.glob("*.tmp*"))


@pytest.mark.parametrize("model", ["autoformer_nano", "autoformer_tiny"])
def test_photos_take_over_the_models_input(tmp_path: Path, model: str) -> None:
    config = photos(WeightsConfig(model=model), tmp_path)
    cfg = timm.get_pretrained_cfg(model)
    assert config.largest_size == cfg.input_size[-1]
    assert NORMALISATIONS[config.data.normalisation] == (tuple(cfg.mean), tuple(cfg.std))
    assert (config.data.crop_pct, config.data.interpolation) == (cfg.crop_pct, cfg.interpolation)
    assert (config.data.held_out_split, config.held_out_per_class) == ("", 0.2)
    (tmp_path / "val").mkdir()
    assert photos(WeightsConfig(model=model), tmp_path).data.held_out_split == "val"


@pytest.mark.parametrize("is_noted", [True, False])
def test_photos_take_over_a_files_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_noted: bool
) -> None:
    notes = cfg_to_notes({**az.published.CIFAR10, "crop_pct": 0.75}) if is_noted else {}
    save_supernet(replace(make_weights(), metadata=notes), tmp_path / "supernet.safetensors")
    configs: list[TrainConfig] = []

    def stop(config: TrainConfig, *_: object, **__: object) -> NoReturn:
        configs.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("training.finetune.train", stop)
    words = ["--data_dir", str(tmp_path), "--out", str(tmp_path / "run")]
    words += ["--weights.checkpoint", str(tmp_path / "supernet.safetensors")]
    (tmp_path / "val").mkdir()
    assert main([*words, "--subnet", MINI.smallest.to_json()]) == 130
    (config,) = configs
    expected = ("cifar10", 0.75, "val") if is_noted else ("imagenet", 0.875, "val")
    data = config.data
    assert (data.normalisation, data.crop_pct, data.held_out_split) == expected
    assert config.largest_size == MINI.img_size


def test_one_source_of_weights_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    paths = ["--data-dir", "photos", "--out", "run", "--model", "autoformer_nano"]
    assert main([*paths, "--weights.checkpoint", "x.pth"]) == 2
    assert "--model autoformer_nano and --weights both name weights" in capsys.readouterr().err


def test_model_of_another_family_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "training.engine.network.create_model", lambda *_, **__: torch.nn.Identity()
    )
    with pytest.raises(ValueError, match="'autoformer_nano' is not an AutoFormer, but a Identity"):
        make_network(NANO)
