"""Intervals of means and of rank correlations, and the verdicts that they allow."""

from __future__ import annotations

import pytest
from scipy.stats import kendalltau

from training.reproduce.intervals import (
    RankCorrelation,
    difference,
    exceeds,
    is_positive,
    mean_of,
    rank_correlation,
    rank_correlation_gain,
    spread_of,
)


@pytest.mark.parametrize(
    ("values", "ci95", "text"),
    [
        ([1.0, 2.0, 3.0], 2.4841377, "2.00 ± 2.48"),  # 4.302653 / sqrt(3), from a printed table
        ([2.0, 4.0], 12.706205, "3.00 ± 12.71"),
        ([5.0, 5.0, 5.0], 0.0, "5.00 ± 0.00"),
        ([5.0], None, "5.00 (one value, no error bar)"),
    ],
)
def test_means_have_students_intervals(values: list[float], ci95: float | None, text: str) -> None:
    assert mean_of(values).ci95 == (None if ci95 is None else pytest.approx(ci95))
    assert str(mean_of(values)) == text


def test_difference_is_seed_by_seed() -> None:
    gap = difference([10.0, 20.0, 30.0], [9.0, 19.0, 29.0])
    assert (gap.mean, gap.ci95) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("values", "margin", "verdict"),
    [
        ([1.0, 1.1, 0.9], 0.0, "yes"),
        ([-1.0, -1.1, -0.9], 0.0, "no"),
        ([1.0, -1.0, 0.5], 0.0, "undecided"),
        ([-0.1, -0.1, -0.1], -0.2, "yes"),
        ([3.0], 0.0, "undecided"),
    ],
    ids=["above", "below", "across", "margin", "one seed"],
)
def test_verdict_needs_an_interval_on_one_side(
    values: list[float], margin: float, verdict: str
) -> None:
    assert exceeds(mean_of(values), margin) == verdict


def test_spread_orders_its_figures() -> None:
    spread = spread_of([float(i) for i in range(11)])
    assert [spread[name] for name in ("min", "p10", "median", "p90", "max")] == [0, 1, 5, 9, 10]


UP = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]


@pytest.mark.parametrize(
    ("others", "tau"),
    [
        (UP, 1.0),
        (UP[::-1], -1.0),
        ([2.0, 1.0, *UP[2:]], 1 - 2 / 28),  # one of 28 pairs is the other way round
    ],
    ids=["same", "reversed", "one pair"],
)
def test_ranks_correlate(others: list[float], tau: float) -> None:
    found = rank_correlation(UP, others)
    assert found.tau == pytest.approx(tau)
    assert found.low is not None
    assert found.high is not None
    # Ends are shares of pairs, which may be the value itself.
    assert found.low - 1e-9 <= tau <= found.high + 1e-9
    assert found == rank_correlation(UP, others)


def test_tau_is_scipys_also_with_ties() -> None:
    ones, others = [1.0, 2.0, 2.0, 3.0, 5.0], [2.0, 2.0, 1.0, 4.0, 3.0]
    expected = kendalltau(ones, others).statistic
    assert rank_correlation(ones, others).tau == pytest.approx(expected)


def test_noisy_ranks_have_a_wide_interval() -> None:
    found = rank_correlation(UP, [3.0, 1.0, 8.0, 2.0, 6.0, 4.0, 5.0, 7.0])
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0 < found.high
    assert found.high - found.low > 0.8


def test_equal_accuracies_have_no_ranks() -> None:
    found = rank_correlation(UP, [5.0] * 8)
    assert (found.tau, found.low, found.high) == (None, None, None)
    assert str(found) == "not defined: accuracies are equal"
    assert rank_correlation_gain(UP, [5.0] * 8, UP).tau is None


def test_gain_is_of_the_same_subnets() -> None:
    gain = rank_correlation_gain(UP, UP, [2.0, 1.0, *UP[2:]])
    assert (gain.tau, gain.low, gain.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("low", "high", "count", "verdict"),
    [
        (0.1, 0.9, 8, "yes"),
        (-0.9, -0.1, 8, "no"),
        (-0.1, 0.9, 8, "undecided"),
        (0.1, 0.9, 7, "undecided"),
        (None, None, 8, "undecided"),
    ],
    ids=["above", "below", "across", "few", "undefined"],
)
def test_verdict_on_ranks_needs_an_interval_and_enough_subnets(
    low: float | None, high: float | None, count: int, verdict: str
) -> None:
    assert is_positive(RankCorrelation(low, low, high, count), 8) == verdict
