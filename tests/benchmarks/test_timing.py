"""Rounds and statistics with a fake clock; nothing here depends on how fast anything is."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from autoformer_zoo.specialization.latency.timing import (
    collection_off,
    thread_count,
    wall_stopwatch,
)
from benchmarks.measure.timing import (
    MIN_ROUNDS,
    Spread,
    TimingConfig,
    measure,
    orders,
    ratio_of_medians,
    summarise,
)


class FakeClock:
    """A clock that moves only when a call takes time."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def costing(self, seconds: float, log: list[str], name: str) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds
            log.append(name)

        return run


def test_measure_times_every_competitor_once_a_round() -> None:
    clock, log = FakeClock(), []
    competitors = {
        "slow": clock.costing(0.5, log, "slow"),
        "fast": clock.costing(0.125, log, "fast"),
    }

    times = measure(
        competitors, TimingConfig(rounds=4, warmup=2, settle=1), wall_stopwatch(clock), clock
    )

    assert times == {"slow": [500.0] * 4, "fast": [125.0] * 4}
    assert log[:4] == ["slow", "slow", "fast", "fast"]  # warm-up
    assert Counter(log) == {"slow": 2 + 4 * 2, "fast": 2 + 4 * 2}


def test_measure_stops_after_its_seconds_but_not_before_a_few_rounds() -> None:
    clock, log = FakeClock(), []
    competitors = {"only": clock.costing(1.0, log, "only")}

    def rounds(seconds: float) -> int:
        plan = TimingConfig(rounds=100, seconds=seconds, warmup=0, settle=0)
        return len(measure(competitors, plan, wall_stopwatch(clock), clock)["only"])

    assert rounds(10.0) == 10
    assert rounds(0.5) == MIN_ROUNDS


def test_measure_turns_garbage_collection_off_and_on_again() -> None:
    seen: list[bool] = []
    measure(
        {"only": lambda: seen.append(gc.isenabled())}, TimingConfig(1, warmup=0), wall_stopwatch()
    )

    assert seen == [False, False]
    assert gc.isenabled()
    gc.disable()
    try:
        with collection_off():
            pass
        assert not gc.isenabled()  # as it was
    finally:
        gc.enable()


def test_orders_are_permutations_that_change_and_are_the_same_at_every_call() -> None:
    names = ["a", "b", "c"]
    drawn = list(orders(names, 50))

    assert all(sorted(order) == names for order in drawn)
    assert len({tuple(order) for order in drawn}) == 6
    assert drawn == list(orders(names, 50))


def test_summary_is_median_and_deciles() -> None:
    assert summarise([float(ms) for ms in range(10, -1, -1)]) == Spread(5.0, 1.0, 9.0, 11)
    assert summarise([2.5]) == Spread(2.5, 2.5, 2.5, 1)


def test_ratio_interval_holds_the_ratio_and_narrows_with_rounds() -> None:
    def noisy(rounds: int) -> Spread:
        times = [10.0 + (7 * i) % 11 for i in range(rounds)]
        baseline = [5.0 + (3 * i) % 5 for i in range(rounds)]
        return ratio_of_medians(times, baseline)

    few, many = noisy(11), noisy(275)

    for ratio in (few, many):
        assert ratio.low <= ratio.value <= ratio.high
    assert 0 < many.high - many.low < few.high - few.low


def test_noise_that_hits_whole_rounds_leaves_the_ratio_alone() -> None:
    load = [1.0, 4.0, 2.0, 16.0, 8.0]  # the machine was shared by so much
    ratio = ratio_of_medians([3.0 * x for x in load], [2.0 * x for x in load])
    assert ratio == Spread(1.5, 1.5, 1.5, 5)


@pytest.mark.parametrize(("times", "baseline"), [([1.0, 2.0], [1.0]), ([], [])])
def test_times_of_different_rounds_are_refused(times: list[float], baseline: list[float]) -> None:
    with pytest.raises(ValueError, match=f"{len(times)} and {len(baseline)} times given"):
        ratio_of_medians(times, baseline)


def test_thread_count_is_restored() -> None:
    before = torch.get_num_threads()
    with thread_count(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
