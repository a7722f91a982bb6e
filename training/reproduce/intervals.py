"""Means with their intervals, rank correlations, and the verdicts that follow from them.

Pure: numbers in, numbers out. The questions that they answer are in `answers.py`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["yes", "no", "undecided"]
Floats = NDArray[np.float64]

CONFIDENCE = 0.95  # of an interval
RESAMPLES = 2000  # of a bootstrap, with a seed of its own: the same numbers give the same interval


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean of several measurements.

    Args:
        mean: of the values.
        ci95: half the width of the 95 % interval by Student's t; None for a single value.
        count: number of values.
    """

    mean: float
    ci95: float | None
    count: int

    def __str__(self) -> str:
        if self.ci95 is None:
            return f"{self.mean:.2f} (one value, no error bar)"
        return f"{self.mean:.2f} ± {self.ci95:.2f}"


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean of one or more values with its 95 % interval."""
    if len(values) == 1:
        return Mean(values[0], None, 1)
    from scipy.stats import t  # takes a second to import

    error = statistics.stdev(values) / math.sqrt(len(values))
    ci95 = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return Mean(statistics.fmean(values), ci95, len(values))


def difference(ones: Sequence[float], others: Sequence[float]) -> Mean:
    """Return the mean of paired differences, ones - others: seed by seed."""
    return mean_of([one - other for one, other in zip(ones, others, strict=True)])


def exceeds(mean: Mean, margin: float = 0.0) -> Verdict:
    """Return whether a difference is above `margin`; undecided if its interval includes that."""
    if mean.ci95 is None:
        return "undecided"
    if mean.mean - mean.ci95 > margin:
        return "yes"
    return "no" if mean.mean + mean.ci95 <= margin else "undecided"


def spread_of(values: Sequence[float]) -> dict[str, float]:
    """Return how two or more values are distributed."""
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return {
        "count": len(values),
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values),
        "min": min(values),
        "p10": deciles[0],
        "median": statistics.median(values),
        "p90": deciles[8],
        "max": max(values),
    }


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """Kendall's tau over several subnets, or a difference of two.

    Args:
        tau: the value; None if it is not defined, as for equal accuracies.
        low: lower end of its 95 % interval; None without one.
        high: upper end.
        count: number of subnets.
    """

    tau: float | None
    low: float | None
    high: float | None
    count: int

    def __str__(self) -> str:
        if self.tau is None:
            return "not defined: accuracies are equal"
        text = f"{self.tau:.2f}"
        return text if self.low is None else f"{text} ({self.low:.2f} to {self.high:.2f})"


def rank_correlation(ones: Sequence[float], others: Sequence[float]) -> RankCorrelation:
    """Return Kendall's tau of two measurements of each subnet.

    Its interval is the bootstrap's over subnets: percentiles over resamples, those in which tau is
    not defined left out.
    """
    x, y = np.asarray(ones, float), np.asarray(others, float)
    return _bootstrap(lambda chosen: _tau(x[chosen], y[chosen]), len(x))


def rank_correlation_gain(
    ones: Sequence[float], others: Sequence[float], truth: Sequence[float]
) -> RankCorrelation:
    """Return by how much Kendall's tau to `truth` is higher for `ones` than for `others`.

    Every resample of the bootstrap has the same subnets for both.
    """
    x, y, z = (np.asarray(values, float) for values in (ones, others, truth))
    return _bootstrap(
        lambda chosen: _tau(x[chosen], z[chosen]) - _tau(y[chosen], z[chosen]), len(z)
    )


def is_positive(correlation: RankCorrelation, least: int) -> Verdict:
    """Return whether tau is above 0; undecided across it, or with fewer than `least` subnets."""
    if correlation.count < least or correlation.low is None or correlation.high is None:
        return "undecided"
    if correlation.low > 0:
        return "yes"
    return "no" if correlation.high <= 0 else "undecided"


def _bootstrap(measure: Callable[[NDArray[np.intp]], float], count: int) -> RankCorrelation:
    value = measure(np.arange(count))
    if math.isnan(value):
        return RankCorrelation(None, None, None, count)
    chosen = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    measured = np.array([measure(row) for row in chosen])
    defined = measured[~np.isnan(measured)]
    if not len(defined):
        return RankCorrelation(value, None, None, count)
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return RankCorrelation(value, float(low), float(high), count)


def _tau(x: Floats, y: Floats) -> float:
    """Return tau-b, as `scipy.stats.kendalltau`, which takes 20 times as long: a bootstrap's."""
    ones, others = (np.sign(np.subtract.outer(values, values)) for values in (x, y))
    norm = math.sqrt((ones**2).sum() * (others**2).sum())
    return float((ones * others).sum() / norm) if norm else math.nan
