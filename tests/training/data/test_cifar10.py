"""Images in memory: augmentation of whole batches, and the held-out split."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import autoformer_zoo as az
from autoformer_zoo.classify.predict import predict
from autoformer_zoo.published import CIFAR10_MEAN, CIFAR10_STD
from tests.helpers.made_training import MINI_CONFIG, make_images, open_quickly, train_quickly
from training.data import cifar10
from training.data import open as data_open
from training.data.batch import Batching, cut_held_out
from training.data.cifar10 import (
    Images,
    MemorySource,
    eval_batch,
    load_train,
    train_batch,
)
from training.run.distributed import SINGLE, Ranks
from training.run.schedule import Schedule
from training.settings.config import AugmentConfig, Stage, TrainConfig


def memory_source(config: TrainConfig, ranks: Ranks = SINGLE) -> MemorySource:
    repeats, classes = config.augment.repeats, config.num_classes or 4
    batching = Batching(config.batch_size, config.seed, repeats, classes, ranks)
    return MemorySource(make_images(40), make_images(8), config.augment, batching)


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
    white = Images(torch.full((3, 3, 32, 32), 255, dtype=torch.uint8), torch.arange(3))
    x = eval_batch(white, 16)
    assert x.shape == (3, 3, 16, 16)
    expected = (1 - torch.tensor(CIFAR10_MEAN)) / torch.tensor(CIFAR10_STD)
    torch.testing.assert_close(x[0, :, 3, 5], expected)


def test_prediction_prepares_images_as_training_does() -> None:
    made = make_images(8)
    model = az.create_model("autoformer_nano", pretrained=True).eval()
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in made.images]
    best = [prediction[0].probability for prediction in predict(model, images, top_k=1)]
    with torch.no_grad():
        expected = model(eval_batch(made, 32)).softmax(1).max(1).values
    torch.testing.assert_close(torch.tensor(best), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("crop", ["none", "shift"])
def test_parts_of_a_batch_in_memory_are_the_whole_batch(crop: str) -> None:
    config = replace(MINI_CONFIG, augment=AugmentConfig(crop=crop))
    cpu, schedule = torch.device("cpu"), Schedule(config, 40)
    every = (Ranks(cpu), Ranks(cpu, 0, 2), Ranks(cpu, 1, 2), Ranks(cpu, accumulate=2))
    whole, first, second, both = (
        list(memory_source(config, ranks).train(schedule, 3, 7)) for ranks in every
    )
    assert len(whole) == len(first) == len(second) == len(both) / 2 == 4
    for step, batch in enumerate(whole):
        for part, other in ((0, first[step]), (1, second[step])):
            assert torch.equal(other.x, batch.x[part::2])
            assert torch.equal(other.labels, batch.labels[part::2])
            assert torch.equal(both[2 * step + part].x, other.x)


def test_copies_of_an_image_in_an_epoch_are_different_views() -> None:
    config = replace(MINI_CONFIG, augment=AugmentConfig(policy="batch-m7-n2", repeats=4))
    (batch,) = memory_source(config).train(Schedule(config, 40), 0, 1)
    assert len(batch.labels.unique_consecutive()) == 2  # of eight images: two, four times each
    assert len(batch.x.flatten(1).unique(dim=0)) == 8


def test_erasing_in_memory_follows_from_the_step() -> None:
    config = replace(MINI_CONFIG, augment=AugmentConfig(crop="none", erasing=1.0))
    plain = replace(MINI_CONFIG, augment=AugmentConfig(crop="none"))
    one, same, other = (
        next(memory_source(made).train(Schedule(made, 40), 2, 3)).x
        for made in (config, config, plain)
    )
    assert torch.equal(one, same)
    changed = (one != other).any(1).flatten(1).float().mean(1)
    assert changed.min() > 0
    assert changed.max() < 0.5


def test_more_classes_than_the_network_has_are_refused() -> None:
    with pytest.raises(ValueError, match="cifar10 has labels up to 3, 4 classes; the network has"):
        memory_source(replace(MINI_CONFIG, num_classes=2))


def test_largest_seed_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "_load", lambda *_, **__: make_images(48))
    config = replace(MINI_CONFIG, seed=2**63 - 1, stages=(Stage(1, 8),))
    assert train_quickly(tmp_path, config).step == 5
    with pytest.raises(ValueError, match=f"seed is {2**63}"):
        replace(MINI_CONFIG, seed=2**63)


def test_crop_that_memory_cannot_do_is_refused() -> None:
    config = replace(MINI_CONFIG, data=replace(MINI_CONFIG.data, crop_pct=0.9))
    with pytest.raises(ValueError, match=r"crop_pct is 0\.9; the source 'cifar10' does not crop"):
        open_quickly(config)


def test_held_out_positions_of_cifar10_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(48)
    monkeypatch.setattr(cifar10, "_load", lambda *_, **__: images)
    train_quickly(tmp_path)
    listed = json.loads((tmp_path / "held_out.json").read_text())
    source = open_quickly(MINI_CONFIG)
    assert listed == source.held_out_list == cut_held_out(images.labels, 2, 0)[1].tolist()
    held_out = torch.cat([batch.x for batch in source.held_out(32)])
    assert torch.equal(held_out, eval_batch(images.select(torch.tensor(listed)), 32))


@pytest.mark.parametrize("download", [False, True])
def test_missing_cifar10_says_where_it_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: bool
) -> None:
    requested: list[bool] = []

    def no_network(root: str, train: bool, download: bool) -> None:
        requested.append(download)
        raise OSError("no network")

    monkeypatch.setattr(cifar10, "CIFAR10", no_network)
    with pytest.raises(FileNotFoundError, match=r"no network.*expected .*cifar-10-batches-py"):
        load_train(tmp_path, 500, 0, download)
    assert requested == [download]
    assert data_open.load_train is load_train
