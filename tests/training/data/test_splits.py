"""Splits by name: folders and shards are found, and training, held-out and test images apart."""

from __future__ import annotations

import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from timm.data import dataset_factory

from tests.helpers.made_training import FOLDER, QUICK, open_quickly, write_folder
from training.data.open import open_test
from training.data.splits import folder_of, has_folder, require_apart, require_kind, require_split
from training.reproduce.config import ReproduceConfig
from training.reproduce.phases import Reproduction
from training.settings.config import DataConfig, Stage, TrainConfig
from training.settings.presets import PRESETS


def with_splits(config: TrainConfig, **names: Any) -> TrainConfig:
    return replace(config, data=replace(config.data, **names))


def copy_splits(root: Path, folder: Path, *names: str) -> Path:
    """Make a root whose splits all hold the same images, each in a folder of its own."""
    for name in names:
        shutil.copytree(folder / "train", root / name)
    return root


def test_held_out_images_may_be_a_split_of_their_own(folder: Path, tmp_path: Path) -> None:
    root = copy_splits(tmp_path, folder, "train", "val", "test")
    config = with_splits(FOLDER, held_out_split="validation", test_split="test")
    source = open_quickly(config, root)
    assert (source.num_train, source.held_out_list) == (24, [])
    assert sum(len(batch.x) for batch in source.held_out(8)) == 24


@pytest.mark.parametrize("split", ["train", "training", "val", "validation", "eval", "test"])
def test_folder_of_a_split_is_the_one_that_timm_takes(tmp_path: Path, split: str) -> None:
    for name in ("training", "val", "test"):
        (tmp_path / name).mkdir()
    assert str(folder_of(tmp_path, split)) == dataset_factory._search_split(str(tmp_path), split)
    assert has_folder(tmp_path, split)
    assert not has_folder(tmp_path, "vall")


def test_imagenet_preset_tests_on_the_folder_val(folder: Path, tmp_path: Path) -> None:
    config = replace(PRESETS["imagenet-tiny"], stages=(Stage(1, 16),), batch_size=8)
    with pytest.raises(FileNotFoundError, match=r"validation is not there; .*\(val, .* would do"):
        require_split(config.data, folder, config.data.test_split)
    root = copy_splits(tmp_path, folder, "train", "val")
    require_split(config.data, root, config.data.test_split)
    assert sum(len(batch.labels) for batch in open_test(config, root).held_out(16)) == 24


def test_split_that_is_not_in_the_folder_is_refused_before_training(
    folder: Path, tmp_path: Path
) -> None:
    (write_folder(tmp_path) / "train").rename(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match=r"train is not there; .*\(training would do"):
        open_quickly(FOLDER, tmp_path)
    whole = Reproduction(ReproduceConfig(train=FOLDER), folder, tmp_path / "out", QUICK, False)
    with pytest.raises(FileNotFoundError, match="validation is not there"):
        whole.run("train", "train")
    assert not (tmp_path / "out").exists()


OVERLAPPING = [
    ("folder", "train", "val", "validation"),
    ("folder", "train", "train/../val", "validation"),
    ("folder", "train", "link", "validation"),
    ("folder", "val", "", "validation"),
    ("folder", ".", "", "validation"),
    ("folder", "train", "./train", "validation"),
    ("torch/folder", "train", "val", "validation"),
    ("torch/cifar10", "train", "test", "validation"),
    ("torch/CIFAR100", "Train", "", "validation"),
    ("torch/places365", "train", "val", "validation"),
    ("hfds/one", "train+validation", "", "validation"),
    ("hfds/one", "train", "validation[:50%]", "validation"),
]
APART = [
    ("folder", "train", "val", "test"),
    ("folder", "train", "test", "validation"),
    ("torch/flowers102", "train", "val", "test"),
    ("torch/cifar10", "training", "", "test"),
    ("hfds/one", "train[:90%]", "train[90%:]", "validation"),
]


@pytest.mark.parametrize("splits", [*OVERLAPPING, *APART], ids=" ".join)
def test_splits_that_overlap_are_refused(
    folder: Path, tmp_path: Path, splits: tuple[str, str, str, str]
) -> None:
    names = ("train", "val", "test")[: 2 if splits in OVERLAPPING else 3]
    root = copy_splits(tmp_path, folder, *names)
    (root / "link").symlink_to(root / "val")
    text = r"^data\..* opens images of data\..*; .*: give another"
    expected = pytest.raises(ValueError, match=text) if splits in OVERLAPPING else nullcontext()
    with expected:
        require_apart(DataConfig(*splits), root)


def test_final_evaluation_opens_the_test_set_of_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[bool] = []

    def cifar10(root: str, train: bool, download: bool) -> list[tuple[Image.Image, int]]:
        opened.append(train)
        return [(Image.new("RGB", (32, 32)), 1)] * 10

    monkeypatch.setitem(dataset_factory._TORCH_BASIC_DS, "cifar10", cifar10)
    config = with_splits(FOLDER, source="torch/cifar10")
    config = replace(config, held_out_per_class=0)
    assert sum(len(batch.labels) for batch in open_test(config, tmp_path).held_out(8)) == 10
    assert opened == [True, False]


@pytest.mark.parametrize("source", ["bogus/x", "hdfs/imagenet", "folder/", "mine"])
def test_source_of_an_unknown_kind_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=f"data.source is '{source}'; expected cifar10, folder"):
        open_quickly(with_splits(FOLDER, source=source))


@pytest.mark.parametrize(
    ("source", "package"),
    [("hfds/x", "datasets"), ("TFDS/x", "tensorflow-datasets"), ("wds/", "webdataset")],
)
def test_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, source: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    with pytest.raises(ValueError, match=rf"'{source}' needs a package .*: pip install {package}$"):
        require_kind(source)
    require_kind("Torch/cifar10")
