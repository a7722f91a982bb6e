"""What tests of training share: a mini space, made-up images, a config that takes a second."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autoformer_zoo.space import SearchSpace, SubnetConfig
from training.data.batch import Batch, DataSource
from training.data.cifar10 import Images
from training.data.open import open_source
from training.engine import step
from training.engine.step import RunState
from training.run.distributed import SINGLE, Ranks
from training.run.schedule import Schedule
from training.settings.config import AugmentConfig, DataConfig, Resources, Stage, TrainConfig
from training.train import train

MINI = SearchSpace(
    embed_dim=(32, 64),
    num_heads=(1, 2),
    mlp_ratio=(1.0, 2.0),
    depth=(1, 2, 3),
    supernet=SubnetConfig.uniform(3, 64, 2, 2.0),
    img_size=16,
    patch_size=4,
    num_classes=4,
)
MINI_CONFIG = TrainConfig(
    space=MINI.to_json(),
    stages=(Stage(1, 8), Stage(1, 16)),
    batch_size=8,
    log_every=1,
    checkpoint_every=3,
    precision="fp32",
    drop_path_rate=0.1,
    held_out_per_class=2,
)
ALONE = replace(
    MINI_CONFIG, sampling="fixed", subnet=SubnetConfig(2, 32, (1, 2), (1.0, 2.0)).to_json()
)
FOLDER = replace(
    MINI_CONFIG,
    data=DataConfig(source="folder", normalisation="imagenet"),
    augment=AugmentConfig(crop="resized", policy="rand-m9-mstd0.5-inc1", erasing=0.5),
    held_out_per_class=1,
    batch_size=4,
)
QUICK = Resources(workers=0, plot=False, device="cpu")


def train_quickly(
    out: Path,
    config: TrainConfig = MINI_CONFIG,
    data: Path = Path(),
    stop_at: int | None = None,
    **resources: Any,
) -> RunState:
    """Train in this process, without figures, into the run directory `out`."""
    return train(config, data, out, False, stop_at, replace(QUICK, **resources))


def open_quickly(
    config: TrainConfig, data: Path = Path(), ranks: Ranks = SINGLE, workers: int = 0
) -> DataSource:
    """Open a config's training and held-out images."""
    return open_source(config, data, ranks, replace(QUICK, workers=workers))


def batches_of(
    config: TrainConfig, data: Path = Path(), first: int = 0, end: int | None = None, **opening: Any
) -> list[Batch]:
    """Return the batches of steps first..end-1; None for the last one."""
    source = open_quickly(config, data, **opening)
    schedule = Schedule(config, source.num_train)
    return list(source.train(schedule, first, schedule.total if end is None else end))


def multiply_losses(monkeypatch: pytest.MonkeyPatch, factors: dict[int, float]) -> None:
    """Multiply the loss of some steps, counted from 0 on."""
    label_loss, calls = step.label_loss, list[int]()

    def loss(*arguments: Any) -> torch.Tensor:
        calls.append(len(calls))
        return label_loss(*arguments) * factors.get(calls[-1], 1.0)

    monkeypatch.setattr(step, "label_loss", loss)


def make_images(count: int = 48, seed: int = 3) -> Images:
    """Return random images of four classes, of 32 px."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Images(images, torch.arange(count) % 4)


def split_in_memory(*_: object) -> tuple[Images, Images]:
    """Stand in for `load_train`: 40 images to train on, 8 held out."""
    return make_images(40), make_images(8, seed=4)


def write_folder(root: Path, count: int = 6, classes: int = 4, side: int = 20) -> Path:
    """Write JPEG images in ImageNet's layout, train/CLASS/NAME; returns the root."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        folder = root / "train" / f"n{label:08d}"
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (side, side + number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.JPEG")
    return root


def read_run(run: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """Return a run's log and its weights and averages."""
    values = torch.load(run / "checkpoint.pt", weights_only=True)
    tensors = {
        f"{part}.{name}": t for part in ("network", "ema") for name, t in values[part].items()
    }
    return (run / "log.jsonl").read_text(), tensors


def log_lines(run: Path) -> list[dict[str, object]]:
    """Return a run's log."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, other: Path) -> None:
    """Compare two runs bit by bit."""
    (log, tensors), (other_log, others) = read_run(one), read_run(other)
    assert log == other_log
    assert tensors.keys() == others.keys()
    different = [name for name in tensors if not torch.equal(tensors[name], others[name])]
    assert different == []
