"""Fair timing of several calls in one process, and the statistics of their times.

Calls run in interleaved rounds: each round times every call once, in a new random order, so that a
machine that slows down or is shared slows all of them down alike. Which calls to time is decided
elsewhere (`models.py`, the commands); `rows.py` makes rows of the results. Stopwatches are in
`autoformer_zoo/specialization/latency/timing.py`; here clock and randomness are passed in.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from autoformer_zoo.specialization.latency.timing import Call, Stopwatch, collection_off

Name = TypeVar("Name", bound=Hashable)

MIN_ROUNDS = 3  # the time limit never cuts below this: a median of fewer times means nothing
RESAMPLES = 2000  # draws of the bootstrap
PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices whose product gives the machine's peak


@dataclass(frozen=True, slots=True)
class TimingConfig:
    """How many rounds to time.

    Raises:
        ValueError: a number is out of range.
    """

    rounds: int = 50  # timed calls of each competitor, at most
    seconds: float | None = None  # start no further round after this long
    warmup: int = 3  # untimed calls of each competitor before the first round
    settle: int = 1  # untimed calls before each timed one: competitors evict each other's caches

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}; expected 1 or more")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds is {self.seconds}; expected a positive number")
        for name in ("warmup", "settle"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure and its spread: 10th and 90th percentile, or the interval of 95 % of a ratio."""

    value: float
    low: float
    high: float
    repeats: int


def measure(
    calls: Mapping[Name, Call],
    config: TimingConfig,
    stopwatch: Stopwatch,
    clock: Callable[[], float] = time.monotonic,
) -> dict[Name, list[float]]:
    """Time all calls in interleaved rounds, with garbage collection off.

    Args:
        calls: what to time, by name.
        config: number of rounds, or seconds.
        stopwatch: times one call.
        clock: seconds, for the time limit.

    Returns:
        Times in ms by name, one a round: the i-th times of all names are from the same round.
    """
    for call in calls.values():
        for _ in range(config.warmup):
            call()
    times: dict[Name, list[float]] = {name: [] for name in calls}
    start, limit = clock(), math.inf if config.seconds is None else config.seconds
    with collection_off():
        for done, order in enumerate(orders(list(calls), config.rounds)):
            if done >= MIN_ROUNDS and clock() - start >= limit:
                break
            for name in order:
                for _ in range(config.settle):
                    calls[name]()
                times[name].append(stopwatch(calls[name]))
    return times


def orders(names: Sequence[Name], rounds: int) -> Iterator[list[Name]]:
    """Yield a random order of all names for each round; the orders are the same at every call."""
    rng = random.Random(0)
    for _ in range(rounds):
        yield rng.sample(list(names), len(names))


def summarise(times_ms: Sequence[float]) -> Spread:
    """Return median and 10th and 90th percentile of one or more times."""
    if len(times_ms) == 1:
        return Spread(times_ms[0], times_ms[0], times_ms[0], 1)
    deciles = statistics.quantiles(times_ms, n=10, method="inclusive")
    return Spread(statistics.median(times_ms), deciles[0], deciles[8], len(times_ms))


def ratio_of_medians(times_ms: Sequence[float], baseline_ms: Sequence[float]) -> Spread:
    """Divide the median of one competitor by that of another, with a bootstrap interval.

    Args:
        times_ms: times of one, by round.
        baseline_ms: times of the other, from the same rounds.

    Returns:
        The ratio of medians, and the 2.5th and 97.5th percentile of the draws.

    Raises:
        ValueError: the numbers of rounds differ, or are 0.
    """
    rounds = len(times_ms)
    if rounds != len(baseline_ms) or not rounds:
        raise ValueError(
            f"{rounds} and {len(baseline_ms)} times given; expected the same rounds of both"
        )
    rng = random.Random(0)
    draws = []
    for _ in range(RESAMPLES):
        # Whole rounds are drawn, for both at once: what slowed a round down slowed both.
        drawn = rng.choices(range(rounds), k=rounds)
        over = statistics.median(times_ms[i] for i in drawn)
        draws.append(over / statistics.median(baseline_ms[i] for i in drawn))
    steps = statistics.quantiles(draws, n=40, method="inclusive")  # steps of 2.5 %
    ratio = statistics.median(times_ms) / statistics.median(baseline_ms)
    return Spread(ratio, steps[0], steps[-1], rounds)


def peak_gflops(device: str, dtype: torch.dtype, stopwatch: Stopwatch) -> float:
    """Measure the fastest of a few large matrix products.

    Args:
        device: "cpu" or "cuda".
        dtype: of both factors.
        stopwatch: times one product.

    Returns:
        GFLOP/s, a multiply-add counted as two.
    """
    side = PRODUCT_SIDE[device]
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    config = TimingConfig(rounds=10, seconds=3.0, warmup=2, settle=0)
    times = measure({"product": lambda: torch.mm(a, b, out=out)}, config, stopwatch)
    return 2 * side**3 / min(times["product"]) / 1e6
