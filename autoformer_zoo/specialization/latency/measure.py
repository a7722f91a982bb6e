"""Measure a latency profile of this machine, or take the one in the cache.

Random subnets are timed in rounds: each round makes every network once, in a new random order, and
takes the fastest of a few calls. Networks are made anew each time: all of them together would not
fit into memory, and where a network's weights lie in memory changes its time by some percent.
Before and after each network the same reference network is timed, and times are divided by what it
took around then: virtual machines become slower and faster within seconds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from autoformer_zoo.network.packed_linear import processor
from autoformer_zoo.published import SPACES, find_space
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.specialization.latency.network_runs import prepare_models, prepare_runs
from autoformer_zoo.specialization.latency.profile import (
    NS_PER_MS,
    Backend,
    BlockLatency,
    Device,
    LatencyProfile,
    Precision,
    RunSetting,
    fit,
)
from autoformer_zoo.specialization.latency.timing import (
    Call,
    Stopwatch,
    collection_off,
    require_device,
    stopwatch_for,
    thread_count,
)
from autoformer_zoo.weights.pretrained import cache_folder
from autoformer_zoo.weights.whole_files import write_whole

SECONDS = 120.0  # of timing; making networks and exporting come on top
MOST, FEWEST = 60, 20  # timed subnets
ADAPTED = 10  # timed subnets that adapt a profile of another machine
COMPILED = 4  # subnets under torch.compile, each of which takes a minute or more
MIN_ROUNDS = 2
WARMUP = 1  # untimed calls of a network in a round
CALLS, CALLS_MS = (3, 9), 80.0  # timed ones: as many of these as take this long
NEAR = 3  # timings of the reference before and after a network, whose median it is divided by
MAX_NOISE_PERCENT = 5.0  # standard error of a subnet's time, above which there is no profile
FAVOURED = 0.5  # probability that a block has the choice which its subnet favours

_log = logging.getLogger(__name__)


class NoisyMachineError(OSError):
    """Repeated timings of the same networks differ by too much."""


def profile_device(
    space: str | SearchSpace,
    *,
    device: Device = "cpu",
    backend: Backend = "eager",
    precision: Precision = "fp32",
    batch_size: int = 1,
    threads: int | None = None,
    adapt: LatencyProfile | None = None,
    seconds: float = SECONDS,
    use_cache: bool = True,
    progress: bool = True,
) -> LatencyProfile:
    """Return the latency profile of a space on this machine, measuring it if the cache has none.

    Args:
        space: a name of `SPACES`, or another space.
        device: "cpu" or "cuda".
        backend: "eager", "compile" or "onnxruntime".
        precision: "fp32", "bf16" (of PyTorch) or "int8" (of onnxruntime).
        batch_size: images per call.
        threads: on the CPU; PyTorch's number by default.
        adapt: a profile of another machine or setting, for which ten timed subnets suffice.
        seconds: of timing, about; two rounds are timed in any case.
        use_cache: False to measure in any case. The cache holds one profile for each machine,
            version of the libraries and setting.
        progress: show a progress bar.

    Raises:
        ValueError: a setting is refused.
        NoisyMachineError: repeated timings differ by too much; the text has the figure.
    """
    if not 0 < seconds < float("inf"):
        raise ValueError(f"seconds is {seconds}; expected a positive number that is finite")
    space = find_space(space) if isinstance(space, str) else space
    setting = _setting(device, backend, precision, batch_size, threads)
    path = profile_path(space, setting)
    if use_cache and adapt is None and (kept := _kept(path)) is not None:
        return kept
    if adapt is not None:
        adapt.cost(space)  # refuses another space's before minutes are spent
    _log.info("measuring the latency of subnets (%s), about %.0f s", setting, seconds)
    count = ADAPTED if adapt else MOST
    if backend == "compile":  # these few change the profile of the same networks uncompiled
        count, uncompiled = COMPILED, profile_path(space, replace(setting, backend="eager"))
        adapt = adapt or _kept(uncompiled)
    subnets = draw_design(space, count)
    timed = time_subnets(space, setting, subnets, seconds, progress)
    profile = make_profile(space, setting, timed, adapt)
    write_whole(path, profile.to_json() + "\n")
    return profile


def find_profile(
    space: str | SearchSpace,
    *,
    device: Device = "cpu",
    backend: Backend = "eager",
    precision: Precision = "fp32",
    batch_size: int = 1,
    threads: int | None = None,
) -> LatencyProfile | None:
    """Return the profile that the cache holds, None if it holds none; see `profile_device`."""
    space = find_space(space) if isinstance(space, str) else space
    path = profile_path(space, _setting(device, backend, precision, batch_size, threads))
    return _kept(path)


def _kept(path: Path) -> LatencyProfile | None:
    """Read a profile of the cache; None if there is none, or it is damaged."""
    if not path.is_file():
        return None
    try:
        return LatencyProfile.load(path)
    except ValueError as error:
        _log.warning("the cached profile is not used: %s", error)
        return None


def _setting(
    device: Device, backend: Backend, precision: Precision, batch_size: int, threads: int | None
) -> RunSetting:
    require_device(device)
    threads = torch.get_num_threads() if threads is None else threads
    return RunSetting(device, backend, precision, batch_size, threads)


@dataclass(frozen=True, slots=True)
class Timed:
    """Subnets with their latencies.

    Args:
        subnets: what was timed.
        ms: latency of each.
        noise_percent: standard error of one of these latencies.
    """

    subnets: tuple[SubnetConfig, ...]
    ms: tuple[float, ...]
    noise_percent: float


def draw_design(space: SearchSpace, count: int, seed: int = 0) -> list[SubnetConfig]:
    """Draw subnets to time: every width equally often, and blocks that are often alike.

    Averages over many independent blocks would hardly differ, and tell little about the parts.
    """
    rng = random.Random(f"design/{seed}")
    subnets = []
    for i in range(count):
        depth = rng.choice(space.depth)
        heads, ratio = rng.choice(space.num_heads), rng.choice(space.mlp_ratio)
        subnets.append(
            SubnetConfig(
                depth,
                space.embed_dim[i % len(space.embed_dim)],
                tuple(_favoured(heads, space.num_heads, rng) for _ in range(depth)),
                tuple(_favoured(ratio, space.mlp_ratio, rng) for _ in range(depth)),
            )
        )
    return subnets


def middle_of(space: SearchSpace) -> SubnetConfig:
    """Return the uniform subnet of middle choices."""
    names = ("depth", "embed_dim", "num_heads", "mlp_ratio")
    choices = [getattr(space, name) for name in names]
    return SubnetConfig.uniform(*(each[len(each) // 2] for each in choices))


def _favoured(favourite: Any, choices: Sequence[Any], rng: random.Random) -> Any:
    return favourite if rng.random() < FAVOURED else rng.choice(choices)


def time_subnets(
    space: SearchSpace,
    setting: RunSetting,
    subnets: Sequence[SubnetConfig],
    seconds: float = SECONDS,
    progress: bool = True,
    fewest: int | None = FEWEST,
    max_noise_percent: float | None = None,
) -> Timed:
    """Time subnets in interleaved rounds.

    Args:
        space: whose subnets.
        setting: how they run.
        subnets: which ones.
        seconds: of timing, about.
        progress: show a progress bar.
        fewest: if all are too many for the time, time only the first ones, but this many; None to
            time all in any case.
        max_noise_percent: largest standard error of a latency; `MAX_NOISE_PERCENT` by default.

    Raises:
        NoisyMachineError: repeated timings differ by too much.
    """
    make = prepare_runs(space, setting)
    stopwatch = stopwatch_for(setting.device)
    with thread_count(setting.threads), collection_off():
        reference = make(middle_of(space))
        time_calls(reference, stopwatch)  # what is only slow once
        started = time.monotonic()
        time_calls(make(space.largest), stopwatch)
        time_calls(reference, stopwatch)
        if fewest is not None:
            fitting = int(seconds / MIN_ROUNDS / (time.monotonic() - started))
            subnets = subnets[: max(fewest, fitting)]
        makers = [partial(make, subnet) for subnet in subnets]
        rounds = time_rounds(makers, reference, stopwatch, seconds, progress)
    ms, noise_percent = combine(rounds)
    _require_quiet(noise_percent, max_noise_percent)
    return Timed(tuple(subnets), tuple(ms.tolist()), noise_percent)


def time_subnet(
    space: SearchSpace, setting: RunSetting, subnet: SubnetConfig, rounds: int = 5
) -> float:
    """Time one subnet by itself; the median of a few networks of it, in ms."""
    make, stopwatch = prepare_runs(space, setting), stopwatch_for(setting.device)
    with thread_count(setting.threads), collection_off():
        calls = [time_calls(make(subnet), stopwatch) for _ in range(rounds)]
        return float(np.median(np.concatenate(calls)))


def _require_quiet(noise_percent: float, most: float | None = None) -> None:
    most = MAX_NOISE_PERCENT if most is None else most
    if noise_percent > most:
        raise NoisyMachineError(
            f"repeated timings of a network differ too much: standard error {noise_percent:.1f} %, "
            f"expected at most {most:g} %; end other programs, or measure for longer"
        )


def time_models(
    space: SearchSpace,
    setting: RunSetting,
    names: Sequence[str],
    seconds: float = 20.0,
    progress: bool = True,
) -> dict[str, float]:
    """Time models of timm's registry, untrained, as subnets are timed; in ms.

    Args:
        space: whose image size.
        setting: how they run.
        names: of the models.
        seconds: of timing, about.
        progress: show a progress bar.

    Raises:
        NoisyMachineError: repeated timings differ by too much.
    """
    make, stopwatch = prepare_models(space, setting), stopwatch_for(setting.device)
    with thread_count(setting.threads), collection_off():
        makers = [partial(make, name) for name in names]
        reference = prepare_runs(space, setting)(middle_of(space))
        rounds = time_rounds(makers, reference, stopwatch, seconds, progress)
    ms, noise_percent = combine(rounds)
    _require_quiet(noise_percent)
    return dict(zip(names, ms.tolist(), strict=True))


def time_calls(call: Call, stopwatch: Stopwatch) -> list[float]:
    """Return the times of a few calls of a network in ms."""
    for _ in range(WARMUP):
        call()
    times: list[float] = []
    while len(times) < CALLS[0] or (len(times) < CALLS[1] and sum(times) < CALLS_MS):
        times.append(stopwatch(call))
    return times


def time_rounds(
    makers: Sequence[Callable[[], Call]],
    reference: Call,
    stopwatch: Stopwatch,
    seconds: float,
    progress: bool,
    clock: Callable[[], float] = time.monotonic,
) -> NDArray[np.float64]:
    """Time each of some networks once a round, each round in another order.

    Args:
        makers: what makes the networks.
        reference: a call of the network that is timed between all others.
        stopwatch: times one call.
        seconds: start no further timing after this long, once there are two rounds.
        progress: show a progress bar.
        clock: seconds.

    Returns:
        Times (rounds, networks) in ms at the reference's usual speed; NaN where time ran out in the
        last round.
    """
    count, start, rng = len(makers), clock(), random.Random(0)
    order: list[int] = []
    times, references = list[float](), [time_calls(reference, stopwatch)]
    with tqdm(total=MIN_ROUNDS * count, unit="network", disable=not progress, leave=False) as bar:
        while len(order) < MIN_ROUNDS * count or clock() - start < seconds:
            for i in rng.sample(range(count), count):
                if len(order) >= MIN_ROUNDS * count and clock() - start >= seconds:
                    break
                order.append(i)
                times.append(min(time_calls(makers[i](), stopwatch)))
                references.append(time_calls(reference, stopwatch))
                bar.total = max(bar.total, len(order))
                bar.update()
    # The fastest calls are compared, since whatever else runs makes calls slower; the reference's
    # usual time then says what is usual.
    fastest, usual = [min(each) for each in references], np.median(np.concatenate(references))
    around = [np.median(fastest[max(0, i - NEAR + 1) : i + NEAR + 1]) for i in range(len(times))]
    rounds = np.full((-(-len(order) // count), count), np.nan)
    places = np.arange(len(order)) // count, order
    rounds[places] = np.array(times) / np.array(around) * usual
    return rounds


def combine(rounds: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Return one latency for each network, and the standard error of one in percent.

    Args:
        rounds: two or more of (rounds, networks), NaN where one of the last is missing.
    """
    logs = np.log(rounds)
    ms = np.exp(np.nanmedian(logs, 0))
    # Of the middle half, as a standard deviation of a normal distribution: outliers are harmless.
    whole = logs[~np.isnan(logs).any(1)]
    low, high = np.quantile(whole - whole.mean(0), [0.25, 0.75])
    sd = np.sqrt(len(whole) / (len(whole) - 1)) * (high - low) / 1.349
    return ms, float(100 * sd / np.sqrt(len(whole)))


def make_profile(
    space: SearchSpace, setting: RunSetting, timed: Timed, other: LatencyProfile | None = None
) -> LatencyProfile:
    """Fit a profile to timed subnets; `other` is adapted."""
    found = fit(space, timed.subnets, timed.ms, other)
    return LatencyProfile(
        setting=setting,
        machine=machine_name(setting.device),
        versions=describe_versions(setting.backend),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        img_size=space.img_size,
        patch_size=space.patch_size,
        num_timed=len(timed.subnets),
        noise_percent=round(timed.noise_percent, 3),
        error_percent=(round(found.error_percent[0], 3), round(found.error_percent[1], 3)),
        rest_ns={str(dim): round(ms * NS_PER_MS) for dim, ms in found.rest_ms.items()},
        blocks=tuple(
            BlockLatency(*key, round(ms * NS_PER_MS)) for key, ms in found.block_ms.items()
        ),
    )


def profile_path(space: SearchSpace, setting: RunSetting) -> Path:
    """Return the file in the cache of a space's profile on this machine, with these versions."""
    named = next((name for name, known in SPACES.items() if known == space), "space")
    key = [space.to_dict(), asdict(setting), machine_name(setting.device)]
    key.append(describe_versions(setting.backend))
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{named}-{setting.backend}-{setting.precision}-{digest}.json"
    return cache_folder() / "profiles" / name


def machine_name(device: str) -> str:
    """Return the name of the processor, with the number of processors, or of the card."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor('model name') or platform.machine()}, {os.cpu_count()} CPUs"


def describe_versions(backend: Backend) -> str:
    """Return the versions that latencies depend on."""
    packages = ["torch", *(["onnxruntime"] if backend == "onnxruntime" else [])]
    own = version("autoformer_zoo")
    return ", ".join([*(f"{name} {version(name)}" for name in packages), f"autoformer_zoo {own}"])
