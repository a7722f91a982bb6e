"""Where batches come from: order, augmentation, held-out split, broken images."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageDataset

from autoformer_zoo.published import CIFAR10_MEAN, CIFAR10_STD
from tests.helpers.made_training import (
    FOLDER,
    MINI_CONFIG,
    QUICK,
    log_lines,
    make_images,
    write_folder,
)
from training.config import AugmentConfig, DataConfig, Stage, TrainConfig
from training.data import cifar10 as data_module
from training.data import datasets
from training.data import indexed as timm_source
from training.data import open as data_open
from training.data.batch import Batch, epoch_order, held_out_indices
from training.data.cifar10 import Images, MemorySource, eval_batch, load_train, train_batch
from training.data.datasets import DamagedDataError
from training.data.open import open_source
from training.data.transforms import train_transform
from training.presets import PRESETS
from training.run.distributed import Ranks
from training.run.schedule import Schedule
from training.train import main, train

CPU = torch.device("cpu")
ALONE = Ranks(CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"))


def batches(
    config: TrainConfig, root: Path, first: int = 0, ranks: Ranks = ALONE, workers: int = 0
) -> list[Batch]:
    source = open_source(config, root, ranks, replace(QUICK, workers=workers))
    schedule = Schedule(config, source.num_train)
    return list(source.train(schedule, first, schedule.total))


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
    image = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), ramp.expand(32, 32)])
    images = Images(image.expand(64, 3, 32, 32), torch.zeros(64, dtype=torch.long))
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (CIFAR10_MEAN, CIFAR10_STD))
    x = train_batch(images, 32, seed=0, step=0) * std + mean
    middle = x[:, 0, 16, 8:24]  # far from the padding
    steps = middle.diff(dim=1).round()
    assert set(steps.unique().tolist()) == {-1.0, 1.0}  # both flips occur, nothing else
    assert 20 < (steps[:, 0] < 0).sum() < 44
    assert torch.equal(
        train_batch(images, 32, seed=0, step=5), train_batch(images, 32, seed=0, step=5)
    )


def test_eval_batch_normalises_and_resizes() -> None:
    grey = Images(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8), torch.zeros(1).long())
    x = eval_batch(grey, 16)
    assert x.shape == (1, 3, 16, 16)
    expected = (1 - torch.tensor(CIFAR10_MEAN)) / torch.tensor(CIFAR10_STD)
    torch.testing.assert_close(x[0, :, 3, 5], expected)


def test_missing_cifar10_says_where_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected .*cifar-10-batches-py"):
        load_train(tmp_path, 500, 0)


def test_held_out_refuses_to_take_a_whole_class() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2])
    assert len(held_out_indices(labels, 1, seed=0)) == 2  # class 1 has no image at all
    with pytest.raises(ValueError, match="class 2 has 2 images; with held_out_per_class=2 none"):
        held_out_indices(labels, 2, seed=0)
    assert len(held_out_indices(labels, 0, seed=0)) == 0


def test_repeats_show_a_third_of_the_images_three_times() -> None:
    order = epoch_order(90, seed=0, epoch=2, repeats=3)
    assert len(order) == 90
    assert torch.equal(order[0::3], order[1::3])
    assert len(set(order.tolist())) == 30
    assert not torch.equal(order, epoch_order(90, seed=0, epoch=3, repeats=3))


@pytest.mark.parametrize("crop", ["none", "shift"])
def test_parts_of_a_batch_in_memory_are_the_whole_batch(crop: str) -> None:
    config = replace(MINI_CONFIG, augment=AugmentConfig(crop=crop))
    splits = {}
    for ranks in (Ranks(CPU), Ranks(CPU, 0, 2), Ranks(CPU, 1, 2), Ranks(CPU, accumulate=2)):
        source = MemorySource(config, make_images(40), make_images(8), ranks)
        splits[ranks] = list(source.train(Schedule(config, 40), 3, 7))
    whole, first, second, both = splits.values()
    assert len(whole) == len(first) == len(second) == len(both) / 2 == 4
    for step, batch in enumerate(whole):
        for part, other in ((0, first[step]), (1, second[step])):
            assert torch.equal(other.x, batch.x[part::2])
            assert torch.equal(other.labels, batch.labels[part::2])
            assert torch.equal(both[2 * step + part].x, other.x)


def test_erasing_in_memory_follows_from_the_step() -> None:
    config = replace(MINI_CONFIG, augment=AugmentConfig(crop="none", erasing=1.0))
    plain = replace(MINI_CONFIG, augment=AugmentConfig(crop="none"))
    made = []
    for each in (config, config, plain):
        source = MemorySource(each, make_images(40), make_images(8), Ranks(CPU))
        made.append(next(source.train(Schedule(each, 40), 2, 3)).x)
    assert torch.equal(made[0], made[1])
    changed = (made[0] != made[2]).any(1).flatten(1).float().mean(1)
    assert changed.min() > 0
    assert changed.max() < 0.5


def test_folder_batches_follow_from_the_step_alone(folder: Path) -> None:
    whole = batches(FOLDER, folder)
    random.seed(7)
    assert len(whole) == 10
    for step, batch in enumerate(batches(FOLDER, folder, first=4), start=4):
        assert torch.equal(batch.x, whole[step].x)
        assert torch.equal(batch.labels, whole[step].labels)
    assert whole[0].x.shape == (4, 3, 8, 8)
    assert whole[9].x.shape == (4, 3, 16, 16)
    assert not torch.equal(whole[0].x, batches(replace(FOLDER, seed=1), folder)[0].x)


def test_folder_batches_are_the_same_with_workers_and_in_parts(folder: Path) -> None:
    config = replace(FOLDER, stages=(Stage(1, 8),))
    whole = batches(config, folder)
    with_workers = batches(config, folder, workers=2)
    second = batches(config, folder, ranks=Ranks(CPU, 1, 2))
    for batch, same, part in zip(whole, with_workers, second, strict=True):
        assert torch.equal(batch.x, same.x)
        assert torch.equal(batch.x[1::2], part.x)


def test_continuing_decodes_nothing_of_what_was_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    read_image = timm_source.read_image
    monkeypatch.setattr(
        timm_source,
        "read_image",
        lambda dataset, index: read.append(index) or read_image(dataset, index),
    )
    batches(FOLDER, folder, first=9)
    assert len(read) == FOLDER.batch_size


def test_held_out_images_of_a_folder_are_apart_and_listed(folder: Path, tmp_path: Path) -> None:
    source = open_source(FOLDER, folder, ALONE, QUICK)
    assert source.num_train == 20
    assert len(source.held_out_list) == 4
    config = replace(FOLDER, stages=(Stage(3, 8),), augment=AugmentConfig(crop="none"))
    trained = torch.cat([batch.x for batch in batches(config, folder)])
    held_out = torch.cat([batch.x for batch in source.held_out(8)])
    assert len(held_out) == 4
    assert not any(torch.equal(x, y) for x in held_out for y in trained)
    train(FOLDER, folder, tmp_path, progress=False, resources=QUICK)
    assert json.loads((tmp_path / "held_out.json").read_text()) == source.held_out_list


def test_training_never_opens_the_test_split(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    create_dataset = datasets.create_dataset

    def note(name: str, root: str, split: str, **arguments: object) -> object:
        opened.append(split)
        assert split == "train", "training opened the test split"
        return create_dataset(name, root, split, **arguments)

    def explode(*_: object) -> Images:
        raise AssertionError("training opened the test split")

    monkeypatch.setattr(datasets, "create_dataset", note)
    monkeypatch.setattr(data_module, "load_test", explode)
    (tmp_path / "data").symlink_to(folder)
    train(FOLDER, tmp_path / "data", tmp_path / "run", progress=False, resources=QUICK)
    assert opened == ["train"]

    loaded: list[bool] = []

    def cifar10(_: Path, train: bool, **__: object) -> Images:
        loaded.append(train)
        assert train, "training opened the test split"
        return make_images(48)

    monkeypatch.setattr(data_module, "_load", cifar10)
    train(MINI_CONFIG, tmp_path, tmp_path / "memory", progress=False, resources=QUICK)
    assert loaded == [True]


def test_broken_images_are_replaced_counted_and_logged(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    for name in ("n00000000/0.JPEG", "n00000001/1.JPEG"):
        file = root / "train" / name
        file.write_bytes(file.read_bytes()[:200])
    (root / "train" / "n00000002" / "2.JPEG").write_bytes(b"no image")
    config = replace(FOLDER, held_out_per_class=2, stages=(Stage(4, 8),), evaluate_every=1)
    state = train(config, root, tmp_path / "run", progress=False, resources=QUICK)
    lines = log_lines(tmp_path / "run")
    evaluated = [line.get("held_out_broken", 0) for line in lines if "loss" not in line]
    assert len(set(evaluated)) == 1
    # Three broken files: each is held out, or met once an epoch and perhaps as a replacement.
    assert state.broken >= 4 * (3 - evaluated[0])
    assert [line for line in lines if "loss" in line][-1].get("broken", 0) == state.broken


def test_data_set_of_broken_images_only_is_given_up(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    for file in root.rglob("*.JPEG"):
        file.write_bytes(b"no image")
    text = r"^10 images in a row could not be read, the last with: .*; the data set seems damaged$"
    for workers in (0, 1):  # a worker's error too comes without a traceback
        with pytest.raises(DamagedDataError, match=text):
            batches(FOLDER, root, workers=workers)


def test_command_tells_of_broken_images_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = write_folder(tmp_path)
    for file in root.rglob("*.JPEG"):
        file.write_bytes(b"no image")
    arguments = f"--data-dir {root} --out {tmp_path / 'run'} --data.source folder --device cpu"
    more = "--batch-size 4 --held-out-per-class 1 --workers 1 --precision fp32 --augment.policy"
    assert main([*arguments.split(), "--preset", "nano", *more.split(), ""]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("python -m")] == [lines[-1]]
    assert "10 images in a row could not be read, the last with: cannot identify" in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_folder_without_its_split_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train is not there; expected a folder of images"):
        open_source(FOLDER, tmp_path, ALONE, QUICK)


def test_unknown_data_set_is_refused_with_timms_words(tmp_path: Path) -> None:
    config = replace(FOLDER, data=replace(FOLDER.data, source="torch/flowers"))
    with pytest.raises(FileNotFoundError, match=r"torch/flowers under .*Unknown torchvision"):
        open_source(config, tmp_path, ALONE, QUICK)


@pytest.mark.parametrize("workers", [0, 1])
def test_more_classes_than_the_network_has_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    few = replace(FOLDER, num_classes=3)
    text = r"folder has labels up to 3, 4 classes; the network has 3: give --num-classes 4, or a"
    with pytest.raises(ValueError, match=text):  # before anything is read or written
        train(few, folder, tmp_path / "run", progress=False, resources=QUICK)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(timm_source, "labels_of", lambda _: None)
    with pytest.raises(ValueError, match=text):  # a source that does not tell: at the first batch
        batches(replace(few, held_out_per_class=0, batch_size=20), folder, workers=workers)
    with pytest.raises(
        ValueError, match=r"cifar10 has labels up to 3, 4 classes; the network has 2"
    ):
        MemorySource(replace(MINI_CONFIG, num_classes=2), make_images(40), make_images(8), ALONE)


@pytest.mark.parametrize(
    "policy", ["nonsense", "rand-x9", "Rand-m9", "rand-m9.5", "augmix-q3", "v9"]
)
def test_policy_that_timm_does_not_know_is_refused_before_training(
    folder: Path, tmp_path: Path, policy: str
) -> None:
    config = replace(FOLDER, augment=AugmentConfig(policy=policy))
    text = rf"augment\.policy is '{policy}'.*; expected one that timm knows, such as rand-m9"
    with pytest.raises(ValueError, match=text):
        train(config, folder, tmp_path / "run", progress=False, resources=QUICK)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("source", ["hfds/one", "hfids/one", "TFDS/one"])
def test_missing_package_is_named(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"h": ("datasets", "datasets"), "T": ("tensorflow", "tensorflow tensorflow-datasets")}
    module, packages = names[source[0]]
    monkeypatch.setitem(sys.modules, module, None)
    config = replace(FOLDER, data=DataConfig(source=source))
    text = rf"data\.source '{source}' needs a package .*{module}.*: pip install {packages}$"
    with pytest.raises(ValueError, match=text):
        open_source(config, tmp_path, ALONE, QUICK)


@pytest.mark.parametrize("seed", [-1, 2**63, 2**70])
def test_seed_out_of_range_is_named(seed: int) -> None:
    with pytest.raises(ValueError, match=f"^seed is {seed}; expected "):
        replace(MINI_CONFIG, seed=seed)


def test_largest_seed_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "_load", lambda *_, **__: make_images(48))
    config = replace(MINI_CONFIG, seed=2**63 - 1, stages=(Stage(1, 8),))
    assert train(config, tmp_path, tmp_path / "run", False, resources=QUICK).step == 5


def test_held_out_positions_of_cifar10_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(48)
    monkeypatch.setattr(data_module, "_load", lambda *_, **__: images)
    train(MINI_CONFIG, tmp_path, tmp_path / "run", progress=False, resources=QUICK)
    listed = json.loads((tmp_path / "run" / "held_out.json").read_text())
    source = open_source(MINI_CONFIG, tmp_path, ALONE, QUICK)
    assert listed == source.held_out_list == held_out_indices(images.labels, 2, 0).tolist()
    held_out = torch.cat([batch.x for batch in source.held_out(32)])
    assert torch.equal(held_out, eval_batch(images.select(torch.tensor(listed)), 32))


def test_data_set_that_hides_its_labels_needs_a_held_out_split(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = ImageDataset(str(folder / "train"))
    hidden.reader = type("Reader", (), {"__len__": lambda self: 24})()
    monkeypatch.setattr(datasets, "create_dataset", lambda *_, **__: hidden)
    with pytest.raises(ValueError, match="folder does not tell its labels without decoding"):
        open_source(FOLDER, folder, ALONE, QUICK)


def test_shift_crop_keeps_the_scale() -> None:
    config = replace(FOLDER, augment=AugmentConfig(crop="shift"))
    image = Image.new("RGB", (16, 16), (255, 0, 0))
    kinds = [type(each).__name__ for each in train_transform(config, 16).transforms]
    assert kinds[:3] == ["Resize", "CenterCrop", "RandomCrop"]
    assert "RandomResizedCropAndInterpolation" not in kinds
    assert train_transform(config, 16)(image).shape == (3, 16, 16)


def test_cifar10_is_offered_to_be_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def no_network(root: str, train: bool, download: bool) -> None:
        asked.append(download)
        raise OSError("no network")

    monkeypatch.setattr(data_module, "CIFAR10", no_network)
    with pytest.raises(FileNotFoundError, match=r"no whole CIFAR-10 .*no network.*download=True"):
        load_train(tmp_path, 500, 0, download=True)
    assert asked == [True]
    assert data_open.load_train is load_train


@pytest.mark.slow  # images of 224 px
def test_imagenet_preset_runs_on_a_folder_of_its_layout(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", count=8, side=64)
    config = replace(PRESETS["imagenet-tiny"], batch_size=4, held_out_per_class=1, log_every=1)
    resources = replace(QUICK, accumulate=2)
    state = train(config, root, tmp_path / "run", False, stop_at=2, resources=resources)
    assert (state.step, state.skipped) == (2, 0)
    lines = log_lines(tmp_path / "run")
    assert [line["img_size"] for line in lines] == [224, 224]
    assert 6 < lines[0]["loss"] < 8  # a thousand classes, nothing learned
