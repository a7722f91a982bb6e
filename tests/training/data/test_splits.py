"""Splits by name: found as timm finds them, and training, held-out and test images apart."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from timm.data import dataset_factory

from tests.helpers.made_training import MINI_CONFIG, QUICK, write_folder
from training.config import AugmentConfig, DataConfig, Stage, TrainConfig
from training.data import datasets
from training.data.open import open_source
from training.data.splits import require_apart, require_kind, require_split
from training.presets import PRESETS
from training.reproduce.config import ReproduceConfig
from training.reproduce.phases import Reproduction, open_test
from training.run.distributed import Ranks

ALONE = Ranks(torch.device("cpu"))
FOLDER = replace(
    MINI_CONFIG,
    data=DataConfig(source="folder", normalisation="imagenet"),
    augment=AugmentConfig(crop="none"),
    held_out_per_class=1,
    batch_size=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"))


def with_splits(config: TrainConfig, **names: Any) -> TrainConfig:
    return replace(config, data=replace(config.data, **names))


def link_splits(root: Path, folder: Path, *names: str) -> Path:
    """Make a root whose splits all hold the same images, each in a folder of its own."""
    root.mkdir(exist_ok=True)
    for name in names:
        shutil.copytree(folder / "train", root / name)
    return root


def test_held_out_may_be_a_split_of_its_own(folder: Path, tmp_path: Path) -> None:
    root = link_splits(tmp_path / "data", folder, "train", "val", "test")
    config = with_splits(FOLDER, held_out_split="validation", test_split="test")
    source = open_source(config, root, ALONE, QUICK)
    assert (source.num_train, source.held_out_list) == (24, [])
    assert sum(len(batch.x) for batch in source.held_out(8)) == 24


@pytest.mark.parametrize("split", ["train", "training", "val", "validation", "eval", "test"])
def test_folder_of_a_split_is_the_one_that_timm_takes(
    folder: Path, tmp_path: Path, split: str
) -> None:
    root = link_splits(tmp_path / "data", folder, "training", "val", "test")
    dataset = datasets.open_split(FOLDER, root, split)
    expected = {"train": "training", "validation": "val", "eval": "val"}.get(split, split)
    assert Path(dataset.reader.root).name == expected  # type: ignore[attr-defined]


def test_imagenet_preset_tests_on_the_folder_val(folder: Path, tmp_path: Path) -> None:
    config = replace(PRESETS["imagenet-tiny"], stages=(Stage(1, 16),), batch_size=8)
    with pytest.raises(FileNotFoundError, match=r"validation is not there; .* val, .* would do"):
        require_split(config.data, folder, config.data.test_split)
    root = link_splits(tmp_path / "data", folder, "train", "val")
    require_split(config.data, root, config.data.test_split)
    assert sum(len(batch.labels) for batch in open_test(config, root)) == 24


def test_split_that_is_not_in_the_folder_is_refused_instead_of_the_whole(tmp_path: Path) -> None:
    link_splits(tmp_path / "data", write_folder(tmp_path), "a")
    with pytest.raises(FileNotFoundError, match=r"data/train is not there; .*training would do"):
        open_source(FOLDER, tmp_path / "data", ALONE, QUICK)


def test_reproduction_without_its_test_split_does_not_begin(folder: Path, tmp_path: Path) -> None:
    whole = Reproduction(ReproduceConfig(train=FOLDER), folder, tmp_path, QUICK, progress=False)
    with pytest.raises(FileNotFoundError, match="validation is not there"):
        whole.run("train", "train")
    assert not (tmp_path / "train").exists()


@pytest.mark.parametrize(
    ("source", "train_split", "held_out_split", "test_split"),
    [
        ("folder", "train", "val", "validation"),
        ("folder", "train", "train/../val", "validation"),
        ("folder", "train", "eval", "validation"),
        ("folder", "val", "", "validation"),
        ("folder", ".", "", "validation"),
        ("torch/folder", "train", "val", "validation"),
        ("torch/cifar10", "train", "val", "validation"),
        ("torch/CIFAR100", "Train", "", "validation"),
        ("torch/inat", "train", "full/2021_valid", "validation"),
        ("torch/places365", "train", "val", "validation"),
        ("hfds/one", "train+validation", "", "validation"),
        ("hfds/one", "train", "validation[:50%]", "validation"),
        ("hfds/one", "train", "validation[:60%]", "validation[50%:]"),
        ("hfds/one", "train", "validation[:500]", "validation[50%:]"),
        ("tfds/one", "all", "", "validation"),
        ("wds/one", "train", "val", "val"),
    ],
)
def test_test_split_is_refused_in_training_under_any_name(
    folder: Path,
    tmp_path: Path,
    source: str,
    train_split: str,
    held_out_split: str,
    test_split: str,
) -> None:
    root = link_splits(tmp_path / "data", folder, "train", "val")
    with pytest.raises(ValueError, match=r"data\..* the test split '.*only the final .* another"):
        require_apart(DataConfig(source, train_split, held_out_split, test_split), root)


@pytest.mark.parametrize(
    ("source", "train_split", "held_out_split", "test_split"),
    [
        ("folder", "train", "val", "test"),
        ("folder", "train", "validation", "test"),
        ("folder", "train", "test", "validation"),
        ("torch/flowers102", "train", "val", "test"),
        ("torch/places365", "train-standard", "", "validation"),
        ("torch/cifar10", "training", "", "test"),
        ("hfds/one", "train", "validation", "test"),
        ("hfds/one", "train[:90%]", "train[90%:]", "validation"),
        ("tfds/one", "train[:-1000]", "train[-1000:]", "validation[500:]"),
        ("wds/one", "train", "val", "test"),
    ],
)
def test_splits_that_are_apart_stay(
    folder: Path,
    tmp_path: Path,
    source: str,
    train_split: str,
    held_out_split: str,
    test_split: str,
) -> None:
    root = link_splits(tmp_path / "data", folder, "train", "val", "test")
    require_apart(DataConfig(source, train_split, held_out_split, test_split), root)


def test_shards_are_held_against_each_other(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    apart = DataConfig("wds/one", "a-{0..3}.tar|40", "a-{4..5}.tar", "b-{0..5}.tar")
    require_apart(apart, tmp_path)
    with pytest.raises(ValueError, match=r"opens images of data\.train_split"):
        require_apart(replace(apart, held_out_split="a-{3..5}.tar|30"), tmp_path)


def test_shards_that_are_missing_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    data = DataConfig("wds/", "a-{0..3}.tar|40", "", "b-{0..1}.tar")
    for name in ("b-0.tar", "a-0.tar", "a-1.tar"):
        (tmp_path / name).touch()
    text = (
        r"b-1\.tar is not there \(1 of 2 shards of 'b-\{0\.\.1\}\.tar' are missing\); expected all"
    )
    with pytest.raises(FileNotFoundError, match=text):
        require_split(data, tmp_path, data.test_split)
    with pytest.raises(FileNotFoundError, match=r"a-2\.tar is not there \(2 of 4 shards"):
        require_split(data, tmp_path, data.train_split)
    for split in ("a-{0..1}.tar|20", "a-0.tar::b-0.tar", "https://host/c-{0..1}.tar", "named"):
        require_split(data, tmp_path, split)


def test_held_out_images_that_are_trained_on_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.held_out_split is the training split 'train'"):
        with_splits(FOLDER, held_out_split="train")
    config = with_splits(FOLDER, held_out_split="./train")
    with pytest.raises(ValueError, match=r"'./train' opens images of data.train_split 'train'"):
        open_source(config, folder, ALONE, QUICK)


def test_final_evaluation_may_open_cifar10_of_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[bool] = []

    def cifar10(root: str, train: bool, download: bool) -> list[tuple[Image.Image, int]]:
        opened.append(train)
        return [(Image.new("RGB", (32, 32)), 1)] * 10

    monkeypatch.setitem(dataset_factory._TORCH_BASIC_DS, "cifar10", cifar10)
    config = with_splits(FOLDER, source="torch/cifar10")
    assert sum(len(batch.labels) for batch in open_test(config, tmp_path)) == 10
    assert opened == [True, False]


@pytest.mark.parametrize("source", ["bogus/x", "hdfs/imagenet", "folder/"])
def test_source_of_an_unknown_kind_is_refused(tmp_path: Path, source: str) -> None:
    write_folder(tmp_path)
    text = f"data.source is '{source}', of a kind that timm does not know; expected folder, or one"
    with pytest.raises(ValueError, match=text):
        open_source(with_splits(FOLDER, source=source), tmp_path, ALONE, QUICK)


@pytest.mark.parametrize("source", ["folder", "Torch/cifar10", "HFDS/x", "wds/", "mine/images"])
def test_known_kinds_and_folders_are_let_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "mine" / "images").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    require_kind(source)
