"""The plan of a reproduction, with the time that it is expected to take on this machine.

Estimated from one timed step of the uniform supernet and one timed evaluation, times their numbers:
good to about a factor of 2, which is enough to tell an hour from a week.
"""

from __future__ import annotations

import logging
import random
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from autoformer_zoo.models.factory import extract_subnet
from autoformer_zoo.weights.checkpoint import SupernetWeights
from autoformer_zoo.weights.layouts import Architecture
from training.data.open import open_source
from training.engine.loop import make_context, make_state
from training.engine.step import take_step
from training.reproduce.config import PHASE_NAMES, PhaseName, ReproduceConfig
from training.reproduce.trainings import (
    TrainingRun,
    compared_supernets,
    single_networks,
    supernets,
)
from training.run.distributed import Ranks, device_of
from training.run.schedule import Schedule
from training.run.signals import StopRequest
from training.settings.config import Resources, Stage, TrainConfig, space_of
from training.train import resolve_precision

_log = logging.getLogger(__name__)

TIMED = 3  # calls, after one that is not timed
MAX_PIXELS = 1 << 20  # of a timed batch: 20 images of 224 px; a larger one takes as many times more


@dataclass(frozen=True, slots=True)
class Measured:
    """What was timed: seconds, and the sizes of the data.

    Args:
        step: of a training step of the uniform supernet, at the largest input size.
        extraction: to extract a subnet.
        image: to classify an image.
        num_train: training images.
        num_held_out: held-out images; 0 if the source does not know.
    """

    step: float
    extraction: float
    image: float
    num_train: int
    num_held_out: int


def measure(config: TrainConfig, data_dir: Path, resources: Resources) -> Measured:
    """Time one step and one evaluation, on a part of a batch if it is large.

    Raises:
        FileNotFoundError: the data does not exist.
        ValueError: the config cannot be followed.
    """
    _log.info("timing a few training steps and evaluations on this machine")
    ranks, size = Ranks(device_of(resources.device)), config.largest_size
    batch_size = min(config.batch_size, max(2, MAX_PIXELS // size**2 // 2 * 2))
    timed = replace(
        config,
        precision=resolve_precision(config.precision, ranks.device),
        stages=(Stage(1, size),),
        batch_size=batch_size,
    )
    source = open_source(timed, data_dir, ranks, resources)
    state = make_state(timed, ranks.device)
    context = make_context(timed, state, source, ranks, resources)
    with closing(source.train(context.schedule, 0, 1 + TIMED)) as batches:
        step = _seconds(lambda: take_step(state, context, batches, StopRequest()), ranks.device)
    step *= config.batch_size / batch_size
    space = space_of(config)
    tensors = {name: t.half() for name, t in state.network.weights.state_dict().items()}
    weights = SupernetWeights(tensors, Architecture.of_space(space), "prefix")
    subnet = space.sample(random.Random(0))
    extraction = _seconds(lambda: extract_subnet(weights, subnet, size), ranks.device)
    network = extract_subnet(weights, subnet, size).to(ranks.device)
    x = torch.randn(batch_size, 3, size, size, device=ranks.device)
    with torch.no_grad():
        image = _seconds(lambda: network(x), ranks.device) / batch_size
    return Measured(step, extraction, image, source.num_train, source.num_held_out)


def expected_seconds(config: ReproduceConfig, measured: Measured) -> dict[PhaseName, float]:
    """Return how long the phases take on one process.

    Opening data, the test set, comparing and reporting are left out: they take little time.
    """
    counts, held_out = _counts(config), measured.num_held_out or config.images
    images = min(config.images or held_out, held_out)
    candidate = measured.extraction + images * measured.image

    def training(trains: Iterable[TrainConfig]) -> float:
        return sum(_training_seconds(train, measured, held_out) for train in trains)

    return {
        "train": training(supernets(config).values()),
        "search": counts["search"] * candidate,
        "extract": candidate,
        "retrain": training(_single_networks(config).values()),
        "evaluate": counts["evaluate"] * candidate,
        "compare": 0.0,
        "report": 0.0,
    }


def describe_plan(
    config: ReproduceConfig,
    selected: Collection[PhaseName],
    remaining: Collection[PhaseName],
    seconds: Mapping[PhaseName, float],
) -> list[str]:
    """Return the plan as lines: one for each phase, and the sum if any remains.

    Args:
        config: of the reproduction.
        selected: the phases that are requested.
        remaining: those of them that are not done yet.
        seconds: expected, by phase.
    """
    counts = _counts(config)
    contents: dict[PhaseName, str] = {
        "train": f"{len(supernets(config))} supernets, epochs: {config.train.epochs}",
        "search": f"{counts['search']} candidates at most",
        "extract": "the winner as a file",
        "retrain": f"{len(_single_networks(config))} trainings of single subnets",
        "evaluate": f"{counts['evaluate']} subnets" + (", the test set" if config.tests else ""),
        "compare": "the answers",
        "report": "report.md, figures",
    }
    lines = []
    for name in PHASE_NAMES:
        state = f"about {_duration(seconds[name])}" if name in remaining else "done"
        state = state if name in selected else "not requested"
        lines.append(f"{name:10s}{contents[name]:42s}{state}")
    if not remaining:
        return lines
    total = _duration(sum(seconds[name] for name in remaining))
    return [*lines, f"Expected in all: about {total}, from a few steps timed on this machine."]


def _counts(config: ReproduceConfig) -> dict[PhaseName, int]:
    """Return how many subnets the phases score."""
    others = len(compared_supernets(config)) - 1
    return {
        "search": 2 * config.search_seeds * config.search.evolution.evaluations,
        "evaluate": config.random_subnets + config.compared_subnets * others + config.alone_subnets,
    }


def _single_networks(config: ReproduceConfig) -> dict[TrainingRun, TrainConfig]:
    """Return the single networks to train; which subnets they will be is not known yet."""
    subnet = space_of(config.train).largest
    return single_networks(config, subnet, [subnet] * config.alone_subnets, lambda run: run.name)


def _training_seconds(train: TrainConfig, measured: Measured, held_out: int) -> float:
    """Return how long a training takes."""
    per_epoch = Schedule(train, measured.num_train).steps_per_epoch
    # The cost of a step is about proportional to the pixels of its images.
    steps = sum(s.epochs * (s.img_size / train.largest_size) ** 2 for s in train.stages) * per_epoch
    between_epochs = train.epochs / train.evaluate_every * 2 * held_out * measured.image
    return steps * measured.step * train.subnets_per_step + between_epochs


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
