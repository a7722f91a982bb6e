"""The plan of a reproduction, with how long it takes here: from a few steps, not from a table."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from autoformer_zoo.factory import extract_subnet
from autoformer_zoo.network.supernet import Supernet
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import SupernetWeights
from training.config import MEMORY, Resources, Stage, TrainConfig, space_of
from training.data.batch import EVAL_BATCH, DataSource
from training.data.open import open_source
from training.engine.loop import make_context, make_state
from training.engine.network import Network, make_network
from training.engine.step import RunState, StepContext, take_step
from training.reproduce.config import STAGES, ReproduceConfig
from training.reproduce.separate import make_separate
from training.run.distributed import Ranks, device_of
from training.run.schedule import Schedule
from training.run.signals import StopRequest
from training.train import resolve_precision

TIMED = 5  # calls, after one that is not timed
TEST_IMAGES = 10_000  # of CIFAR-10
# Of a timed batch: 20 images of 224 px. A larger one takes as many times more.
MOST_PIXELS = 1 << 20


@dataclass(frozen=True, slots=True)
class Timing:
    """Estimated seconds.

    Args:
        opening: to open the data and make the network.
        steps: of all steps of a training.
        looks: of all evaluations on held-out images between them.
        num_held_out: of these images.
    """

    opening: float
    steps: float
    looks: float
    num_held_out: int

    @property
    def seconds(self) -> float:
        """Of the whole training."""
        return self.opening + self.steps + self.looks


def plan(
    config: ReproduceConfig,
    stages: Sequence[str],
    left: Collection[str],
    data_dir: Path,
    resources: Resources,
    world: int = 1,
) -> list[str]:
    """Say what a reproduction is going to do, and about how long it takes here.

    Args:
        config: of the reproduction.
        stages: that are asked for.
        left: stages of these that are not done yet.
        data_dir: root of the data.
        resources: device and workers.
        world: number of processes, which share the work.

    Returns:
        Lines: one a stage, and the sum.

    Raises:
        FileNotFoundError: the data is not there.
        ValueError: the config cannot be followed.
    """
    runs, one = config.runs(), config.train
    scored = {
        "search": 2 * config.search_seeds * config.search.evolution.evaluations,
        "evaluate": config.random_subnets + config.compared_subnets * (len(runs) - 1),
    }
    what = {
        "train": f"{len(runs)} supernets, epochs: {one.epochs}",
        "search": f"{scored['search']} candidates at most",
        "extract": "the winner as a file",
        "retrain": f"the winner alone, {config.seeds} times",
        "evaluate": f"{scored['evaluate']} subnets" + (", the test set" if config.tests else ""),
    }
    cost: dict[str, float] = dict.fromkeys(STAGES, 0.0)
    uniform = time_training(one, data_dir, resources)
    if {"train", "retrain"} & set(left):
        timed = partial(time_training, data_dir=data_dir, resources=resources)
        alone = space_of(one).sample(random.Random(0)).to_json()
        each = [
            (config.seeds, uniform),
            (config.sandwich_seeds, timed(replace(one, sampling="sandwich"))),
            (config.separate_seeds, timed(one, make=make_separate)),
        ]
        cost["train"] = sum(count * timing.seconds for count, timing in each)
        fixed = timed(replace(one, sampling="fixed", subnet=alone))
        cost["retrain"] = config.seeds * fixed.seconds
    held_out = uniform.num_held_out or config.images  # a stream does not tell how many it has
    candidate = seconds_of_candidate(one, min(config.images or held_out, held_out), resources)
    for name, count in scored.items():
        cost[name] = count * candidate
    cost["evaluate"] += len(runs) * uniform.opening
    if config.tests and one.data.source == MEMORY:  # others would have to be opened to count them
        cost["evaluate"] += 2 * config.seeds * seconds_of_candidate(one, TEST_IMAGES, resources)
    lines = [
        f"{name:10s}{what.get(name, ''):42s}{_state(name, stages, left, cost[name] / world)}"
        for name in STAGES
    ]
    total = sum(cost[name] for name in left) / world
    left_out = "" if held_out else " Scoring is not counted: the stream does not tell its size."
    told = f"Expected in all: {_duration(total)}, by a few steps timed on this machine."
    return [*lines, told + left_out]


def time_training(
    config: TrainConfig,
    data_dir: Path,
    resources: Resources,
    make: Callable[[TrainConfig], Network] = make_network,
) -> Timing:
    """Estimate how long a training takes, from a few of its steps at every input size.

    Args:
        config: what to train.
        data_dir: root of the data.
        resources: device and workers.
        make: makes the network.

    Raises:
        FileNotFoundError: the data is not there.
        ValueError: the config cannot be followed.
    """
    started = time.perf_counter()
    ranks = Ranks(device_of(resources.device))
    config = replace(config, precision=resolve_precision(config.precision, ranks.device))
    source = open_source(config, data_dir, ranks, resources)
    state = make_state(config, ranks.device, make)
    context = make_context(config, state, source, ranks, resources)
    opening, steps, looks = time.perf_counter() - started, 0.0, 0.0
    schedule = context.schedule
    for stage in config.stages:
        share = min(1.0, MOST_PIXELS / (config.batch_size * stage.img_size**2))
        few = replace(
            config, stages=(stage,), batch_size=max(2, round(config.batch_size * share / 2) * 2)
        )
        fewer = source
        if few.batch_size != config.batch_size:  # a source's batches are of its config
            fewer = open_source(few, data_dir, ranks, resources)
        seconds = _seconds_of_step(few, state, context, fewer)
        factor = config.batch_size / few.batch_size
        steps += seconds * factor * stage.epochs * schedule.steps_per_epoch
        looks += (
            stage.epochs / config.evaluate_every * _seconds_of_look(state, context, source, stage)
        )
    return Timing(opening, steps, looks, source.num_held_out)


def _seconds_of_step(
    config: TrainConfig, state: RunState, context: StepContext, source: DataSource
) -> float:
    """Time whole steps, from the image on the disk to the averaged weights."""
    schedule = Schedule(config, source.num_train)
    context = replace(context, config=config, schedule=schedule)
    state.step = 0
    with closing(source.train(schedule, 0, 1 + TIMED)) as batches:
        step = partial(take_step, state, context, batches, StopRequest())
        return _seconds(step, context.ranks.device)


def _seconds_of_look(
    state: RunState, context: StepContext, source: DataSource, stage: Stage
) -> float:
    """Time the smallest and the largest subnet on a batch of the held-out images, for all."""
    network, space, device = state.ema.module, context.space, context.ranks.device
    for batch in islice(source.held_out(stage.img_size), 1):
        x = batch.x[: max(1, MOST_PIXELS // stage.img_size**2)]
        subnets = [context.fixed] if context.fixed else [space.smallest, space.largest]

        @torch.no_grad()
        def look(x: torch.Tensor, subnets: Sequence[SubnetConfig]) -> None:
            for subnet in subnets:
                network(x, subnet)

        return _seconds(partial(look, x, subnets), device) * source.num_held_out / len(x)
    return 0.0


def seconds_of_candidate(config: TrainConfig, images: int, resources: Resources) -> float:
    """Estimate the seconds that a subnet's held-out accuracy takes, extraction included.

    Args:
        config: of the supernet.
        images: that are looked at.
        resources: the device.
    """
    device, space, size = device_of(resources.device), space_of(config), config.largest_size
    rng, sides = random.Random(0), ((space.img_size,) * 2, (space.patch_size,) * 2)
    tensors = {name: t.half() for name, t in Supernet(space).weights.state_dict().items()}
    weights = SupernetWeights(tensors, space.supernet, "prefix", *sides, 3, space.num_classes)
    x = torch.randn(max(1, min(images, EVAL_BATCH, MOST_PIXELS // size**2)), 3, size, size)
    x = x.to(device)
    extract = partial(extract_subnet, weights, space.sample(rng), size)
    network = extract().to(device)
    with torch.no_grad():
        forward = _seconds(lambda: network(x), device)
    return _seconds(extract, device) + forward * images / len(x)


def _state(name: str, stages: Sequence[str], left: Collection[str], seconds: float) -> str:
    if name not in stages:
        return "not asked for"
    return f"about {_duration(seconds)}" if name in left else "done"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the median time of a call, after one that is not timed."""
    times = []
    for _ in range(1 + TIMED):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
