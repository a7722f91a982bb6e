"""Class names from the training split: their number, their order, and what a run remembers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from shutil import copy, copytree

import pytest
from torchvision.datasets import ImageFolder

from tests.helpers.made_training import (
    FOLDER,
    QUICK,
    open_quickly,
    train_quickly,
    write_folder,
)
from training.data import datasets
from training.data.identity import CLASSES, check_classes, keep_classes, read_classes
from training.data.open import open_test
from training.reproduce.config import ReproduceConfig
from training.reproduce.phases import Reproduction
from training.run.directory import read_config
from training.search.evaluation import open_task
from training.settings.config import Stage, TrainConfig

CONFIG = replace(FOLDER, stages=(Stage(1, 8),))
SPLITS = replace(FOLDER, data=replace(FOLDER.data, held_out_split="val", test_split="test"))


def rename_classes(root: Path, *names: str) -> Path:
    """Name the class folders of each split in the order of `write_folder`; returns the root."""
    for split in root.iterdir():
        for folder, name in zip(sorted(split.iterdir()), names, strict=True):
            folder.rename(split / name)
    return root


def test_number_of_classes_comes_from_the_data(tmp_path: Path) -> None:
    root = rename_classes(write_folder(tmp_path / "data", classes=3), "red", "blue", "green")
    state = train_quickly(tmp_path / "run", CONFIG, root)
    assert state.network.weights.num_classes == 3  # the space has 4
    assert read_config(tmp_path / "run").num_classes == 3
    assert read_classes(tmp_path / "run") == ["blue", "green", "red"]
    again = train_quickly(tmp_path / "run", CONFIG, root)
    assert again.step == state.step


def test_reproduction_searches_subnets_with_the_classes_of_the_data(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", classes=3)
    config = ReproduceConfig(train=CONFIG, tests=False)
    whole = Reproduction(config, root, tmp_path / "out", QUICK, progress=False)
    assert whole.space.num_classes == whole.config.train.num_classes == 3


@pytest.mark.parametrize("change", ["new", "missing"])
def test_run_is_not_resumed_or_searched_with_other_classes(tmp_path: Path, change: str) -> None:
    root, run = write_folder(tmp_path / "data"), tmp_path / "run"
    train_quickly(run, CONFIG, root, stop_at=2)
    folder = root / "train" / "n00000001"
    if change == "new":
        write_folder(tmp_path / "more")
        (tmp_path / "more" / "train" / "n00000000").rename(root / "train" / "dog")
    else:
        folder.rename(tmp_path / "away")
    text = rf"was trained on 4 classes, .*'{'dog' if change == 'new' else folder.name}' is {change}"
    with pytest.raises(ValueError, match=text):
        train_quickly(run, CONFIG, root)
    with pytest.raises(ValueError, match=text):
        open_task(root, run, device="cpu")


@pytest.mark.parametrize("config", [CONFIG, SPLITS], ids=["cut", "split"])
def test_run_is_not_resumed_or_searched_after_images_came(
    tmp_path: Path, config: TrainConfig
) -> None:
    root, run = write_folder(tmp_path / "data"), tmp_path / "run"
    copytree(root / "train", root / "val", dirs_exist_ok=True)
    config = replace(config, stages=CONFIG.stages)
    train_quickly(run, config, root, stop_at=2)
    first = min((root / "train").glob("*/*"))
    copy(first, first.with_name(f"0{first.name}"))
    text = "the training data is not that of .*run: .* images to train on, .* before"
    with pytest.raises(ValueError, match=text):
        train_quickly(run, config, root)
    with pytest.raises(ValueError, match=text):
        open_task(root, run, device="cpu")


def test_run_does_not_start_from_one_that_may_have_seen_its_held_out_images(tmp_path: Path) -> None:
    root, run = write_folder(tmp_path / "data"), tmp_path / "run"
    train_quickly(run, CONFIG, root, stop_at=2)
    first = min((root / "train").glob("*/*"))
    first.rename(first.with_name(f"z{first.name}"))  # as many images, in another order
    copy(first.with_name(f"z{first.name}"), first.with_name("zz.png"))
    with pytest.raises(ValueError, match="may have been trained on"):
        train_quickly(tmp_path / "next", replace(CONFIG, initial=str(run)), root)


def test_other_splits_are_numbered_by_the_names_of_the_training_split(tmp_path: Path) -> None:
    root = write_folder(tmp_path, classes=3)
    for split, classes in (("val", 3), ("test", 2)):
        (write_folder(tmp_path / f"{split}-", classes=classes) / "train").rename(root / split)
    for empty in ("val/n00000001", "val/n00000000"):
        for file in (root / empty).iterdir():
            file.unlink()
    (root / "val" / "n00000000").rmdir()
    (root / "test" / "n00000000").rename(root / "test" / "n00000002")
    held_out = open_quickly(SPLITS, root).held_out(8)
    assert {int(label) for batch in held_out for label in batch.labels} == {2}
    test = open_test(SPLITS, root).held_out(8)
    assert sorted({int(label) for batch in test for label in batch.labels}) == [1, 2]


def test_splits_that_number_classes_otherwise_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val"):
        (write_folder(tmp_path / f"{split}-", classes=2) / "train").rename(tmp_path / split)
    (tmp_path / "val" / "n00000000").rename(tmp_path / "val" / "Dog")
    with pytest.raises(ValueError, match=r"val has class folders that are not among .* 'Dog'"):
        open_quickly(SPLITS, tmp_path)
    monkeypatch.setattr(
        datasets, "create_dataset", lambda _, root, split, **__: ImageFolder(Path(root, split))
    )
    config = replace(SPLITS, data=replace(SPLITS.data, source="torch/imagenet"))
    with pytest.raises(ValueError, match="imagenet: split val has other classes than train"):
        open_quickly(config, tmp_path)


def test_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one class folder, 'n00000000'; expected at least two"):
        open_quickly(FOLDER, write_folder(tmp_path, classes=1))


def test_names_are_kept_once(tmp_path: Path) -> None:
    keep_classes((), tmp_path)
    assert not (tmp_path / CLASSES).exists()
    keep_classes(("a", "é"), tmp_path)
    keep_classes(("a", "é"), tmp_path)
    assert json.loads((tmp_path / CLASSES).read_text()) == ["a", "é"]
    with pytest.raises(ValueError, match="data has 2: in another order"):
        check_classes(("é", "a"), tmp_path)


@pytest.mark.parametrize("text", ["{", '{"a": 0}', "[1]", "[" * 100_000])
def test_damaged_file_of_classes_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / CLASSES).write_text(text)
    with pytest.raises(ValueError, match=r"classes\.json is damaged"):
        read_classes(tmp_path)
