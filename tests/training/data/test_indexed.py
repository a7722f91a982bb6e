"""Batches from folders and torchvision's data sets: order, workers, held-out and broken images."""

from __future__ import annotations

import json
import multiprocessing
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.data import ImageDataset

from tests.helpers.made_training import (
    FOLDER,
    batches_of,
    log_lines,
    make_images,
    open_quickly,
    train_quickly,
    write_folder,
)
from training.data import cifar10, datasets, indexed
from training.data import open as data_open
from training.data.batch import DataError
from training.run.distributed import Ranks
from training.settings.config import AugmentConfig, Stage
from training.settings.presets import PRESETS


def test_folder_batches_follow_from_the_step_alone(folder: Path) -> None:
    whole = batches_of(FOLDER, folder)
    random.seed(7)
    assert len(whole) == 10
    for step, batch in enumerate(batches_of(FOLDER, folder, first=4), start=4):
        assert torch.equal(batch.x, whole[step].x)
        assert torch.equal(batch.labels, whole[step].labels)
    assert whole[0].x.shape == (4, 3, 8, 8)
    assert whole[9].x.shape == (4, 3, 16, 16)
    assert not torch.equal(whole[0].x, batches_of(replace(FOLDER, seed=1), folder)[0].x)


def test_folder_batches_are_the_same_with_workers_and_in_parts(folder: Path) -> None:
    config = replace(FOLDER, stages=(Stage(1, 8),))
    whole = batches_of(config, folder)
    with_workers = batches_of(config, folder, workers=2)
    second = batches_of(config, folder, ranks=Ranks(torch.device("cpu"), 1, 2))
    for batch, same, part in zip(whole, with_workers, second, strict=True):
        assert torch.equal(batch.x, same.x)
        assert torch.equal(batch.x[1::2], part.x)


def test_resuming_decodes_nothing_of_what_was_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    read_sample = indexed.read_sample
    monkeypatch.setattr(
        indexed,
        "read_sample",
        lambda dataset, index: read.append(index) or read_sample(dataset, index),
    )
    batches_of(FOLDER, folder, first=9)
    assert len(read) == FOLDER.batch_size


def test_held_out_images_of_a_folder_are_apart_and_listed(folder: Path, tmp_path: Path) -> None:
    source = open_quickly(FOLDER, folder)
    assert source.num_train == 20
    assert len(source.held_out_list) == 4
    config = replace(FOLDER, stages=(Stage(3, 8),), augment=AugmentConfig(crop="none"))
    trained = torch.cat([batch.x for batch in batches_of(config, folder)])
    held_out = torch.cat([batch.x for batch in source.held_out(8)])
    assert len(held_out) == 4
    assert not any(torch.equal(x, y) for x in held_out for y in trained)
    train_quickly(tmp_path, FOLDER, folder)
    assert json.loads((tmp_path / "held_out.json").read_text()) == source.held_out_list


def test_training_never_opens_the_test_split(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    open_dataset = datasets.open_dataset

    def note(data: object, root: Path, split: str, *more: object) -> object:
        opened.append(split)
        return open_dataset(data, root, split, *more)  # type: ignore[arg-type]

    def explode(*_: object) -> None:
        raise AssertionError("training opened the test split")

    loaded: list[bool] = []

    def load(_: Path, train: bool, **__: object) -> object:
        loaded.append(train)
        return make_images(48)

    monkeypatch.setattr(data_open, "open_dataset", note)
    monkeypatch.setattr(data_open, "load_test", explode)
    monkeypatch.setattr(data_open, "open_test", explode)
    monkeypatch.setattr(cifar10, "_load", load)
    train_quickly(tmp_path / "run", FOLDER, folder)
    assert opened == ["train"]
    train_quickly(tmp_path / "memory")
    assert loaded == [True]


def test_broken_images_are_replaced_counted_and_logged(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    for name in ("n00000000/0.JPEG", "n00000001/1.JPEG"):
        file = root / "train" / name
        file.write_bytes(file.read_bytes()[:200])
    (root / "train" / "n00000002" / "2.JPEG").write_bytes(b"no image")
    config = replace(FOLDER, held_out_per_class=2, stages=(Stage(4, 8),), evaluate_every=1)
    state = train_quickly(tmp_path / "run", config, root)
    lines = log_lines(tmp_path / "run")
    evaluated = [line.get("held_out_broken", 0) for line in lines if "loss" not in line]
    assert len(set(evaluated)) == 1
    # Three broken files: each is held out, or met once an epoch and perhaps as a replacement.
    assert state.broken >= 4 * (3 - evaluated[0])
    assert [line for line in lines if "loss" in line][-1].get("broken", 0) == state.broken


@pytest.mark.parametrize("workers", [0, 1])  # a worker's error too comes without a traceback
def test_data_set_of_broken_images_only_is_given_up(tmp_path: Path, workers: int) -> None:
    root = write_folder(tmp_path)
    for file in root.rglob("*.JPEG"):
        file.write_bytes(b"no image")
    text = r"^10 images in a row could not be read, the last with: .*; the data set seems damaged$"
    with pytest.raises(DataError, match=text):
        batches_of(FOLDER, root, workers=workers)
    assert not multiprocessing.active_children()  # at its end a process would wait for them


def test_workers_end_after_an_error_of_any_kind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise TypeError("a mistake in the package")

    monkeypatch.setattr(indexed, "read_sample", fail)
    with pytest.raises(TypeError, match="a mistake in the package"):
        batches_of(FOLDER, folder, workers=1)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_more_classes_than_the_network_has_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    few = replace(FOLDER, num_classes=3)
    text = r"folder has labels up to 3, 4 classes; the network has 3: give --num-classes 4, or l"
    with pytest.raises(ValueError, match=text):  # before anything is read or written
        train_quickly(tmp_path / "run", few, folder)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(data_open, "labels_of", lambda _: None)
    with pytest.raises(ValueError, match=text):  # a source without a list of labels: while reading
        batches_of(replace(few, held_out_per_class=0, batch_size=20), folder, workers=workers)


def test_data_set_without_a_list_of_labels_needs_a_held_out_split(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = ImageDataset(str(folder / "train"))
    hidden.reader = type("Reader", (), {"__len__": lambda self: 24})()
    monkeypatch.setattr(data_open, "open_dataset", lambda *_: hidden)
    with pytest.raises(ValueError, match="folder does not list its labels, so no held-out images"):
        open_quickly(FOLDER, folder)


def test_unknown_data_set_is_refused_with_timms_words(tmp_path: Path) -> None:
    config = replace(FOLDER, data=replace(FOLDER.data, source="torch/flowers"))
    with pytest.raises(FileNotFoundError, match=r"torch/flowers under .*Unknown torchvision"):
        open_quickly(config, tmp_path)


@pytest.mark.slow  # images of 224 px
def test_imagenet_preset_runs_on_a_folder_of_its_layout(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", count=8, side=64)
    config = replace(PRESETS["imagenet-tiny"], batch_size=4, held_out_per_class=1, log_every=1)
    state = train_quickly(tmp_path / "run", config, root, stop_at=2, accumulate=2)
    assert (state.step, state.skipped) == (2, 0)
    lines = log_lines(tmp_path / "run")
    assert [line["img_size"] for line in lines] == [224, 224]
    assert 6 < lines[0]["loss"] < 8  # a thousand classes, nothing learned
