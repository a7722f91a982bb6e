"""The plan of a reproduction, with how long it takes here: from a few steps, not for a table."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection
from pathlib import Path

import torch
import torch.nn.functional as F

from autoformer_zoo.vit import AutoFormer
from training.config import Resources, TrainConfig
from training.distributed import Ranks, device_of
from training.loop import make_state
from training.networks import space_of
from training.reproduce_config import STAGES, ReproduceConfig
from training.schedule import Schedule
from training.sources import open_source
from training.step import half_type
from training.train import resolve_precision

TIMED = 3  # calls, after one that is not timed


def plan(
    config: ReproduceConfig, done: Collection[str], data_dir: Path, resources: Resources
) -> list[str]:
    """Say what a reproduction is going to do, and about how long it takes here.

    Args:
        config: of the reproduction.
        done: stages that are done already.
        data_dir: root of the data.
        resources: device and workers.

    Returns:
        Lines: one a stage, and the sum.
    """
    each_training = seconds_of_training(config.train, data_dir, resources)
    each_network = seconds_of_candidate(config.train, config.pictures, resources)
    sandwich = 2 + config.train.sandwich_random  # subnets a step
    runs = len(config.runs())
    trainings = {
        "train": config.seeds + sandwich * config.sandwich_seeds + config.separate_seeds,
        "retrain": config.seeds,
    }
    scored = {
        "search": 2 * config.search_seeds * config.search.evolution.evaluations,
        "evaluate": config.random_subnets + config.compared_subnets * (runs - 1),
    }
    what = {
        "train": f"{runs} supernets, epochs: {config.train.epochs}",
        "search": f"{scored['search']} candidates at most",
        "extract": "the winner as a file",
        "retrain": f"the winner alone, {config.seeds} times",
        "evaluate": f"{scored['evaluate']} subnets" + (", the test set" if config.tests else ""),
    }
    lines, total = [], 0.0
    for name in STAGES:
        seconds = trainings.get(name, 0) * each_training + scored.get(name, 0) * each_network
        total += 0 if name in done else seconds
        state = "done" if name in done else f"about {_duration(seconds)}"
        lines.append(f"{name:10s}{what.get(name, ''):42s}{state}")
    return [*lines, f"Expected in all: {_duration(total)}, by a few steps timed on this machine."]


def seconds_of_training(config: TrainConfig, data_dir: Path, resources: Resources) -> float:
    """Estimate the seconds of a whole training with one random subnet a step.

    Args:
        config: what to train.
        data_dir: root of the data, for the number of pictures.
        resources: device and workers.

    Raises:
        FileNotFoundError: the data is not there.
    """
    device = device_of(resources.device)
    source = open_source(config, data_dir, Ranks(torch.device("cpu")), resources)
    schedule = Schedule(config, source.num_train)
    state, rng, space = make_state(config, device), random.Random(0), space_of(config)
    half = half_type(resolve_precision(config.precision, device))
    total = 0.0
    for stage in config.stages:
        x = torch.randn(config.batch_size, 3, stage.img_size, stage.img_size, device=device)
        labels = torch.arange(len(x), device=device) % space.num_classes

        def step(x: torch.Tensor = x, labels: torch.Tensor = labels) -> None:
            with torch.autocast(device.type, half, enabled=half is not None):
                logits = state.network(x, space.sample(rng))
            state.optimizer.zero_grad()
            F.cross_entropy(logits.float(), labels).backward()
            state.optimizer.step()

        total += _seconds(step, device) * schedule.steps_per_epoch * stage.epochs
    return total


def seconds_of_candidate(config: TrainConfig, pictures: int, resources: Resources) -> float:
    """Estimate the seconds that a subnet's held-out accuracy takes.

    Args:
        config: of the supernet.
        pictures: that are looked at; 0: all that are held out.
        resources: the device.
    """
    device, space, size = device_of(resources.device), space_of(config), config.largest_size
    network = AutoFormer(
        space.sample(random.Random(0)),
        img_size=size,
        patch_size=space.patch_size,
        num_classes=space.num_classes,
        device=device,
    ).eval()
    x = torch.randn(50, 3, size, size, device=device)
    with torch.no_grad():
        seconds = _seconds(lambda: network(x), device)
    return seconds * (pictures or config.held_out_per_class * space.num_classes) / len(x)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(1 + TIMED):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])
