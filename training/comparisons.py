"""The statistics of a reproduction: means with their errors, and what they say in words.

Pure functions of numbers; what was measured comes from `reproduce.py`, the text is `report.py`'s.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

Verdict = Literal["yes", "no", "undecided"]

COVERED = 0.95  # of an interval around a mean


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean of several measurements.

    Args:
        mean: of the values.
        half_width: of the 95 % interval by Student's t; None for a single value.
        count: number of values.
    """

    mean: float
    half_width: float | None
    count: int

    def __str__(self) -> str:
        if self.half_width is None:
            return f"{self.mean:.2f} (one value, no error bar)"
        return f"{self.mean:.2f} ± {self.half_width:.2f}"


@dataclass(frozen=True, slots=True)
class Spread:
    """How values are distributed."""

    count: int
    mean: float
    deviation: float
    least: float
    p10: float
    median: float
    p90: float
    most: float


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean with its 95 % interval.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("no value to take the mean of; expected at least one")
    if len(values) == 1:
        return Mean(values[0], None, 1)
    half_width = student_t(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(statistics.fmean(values), half_width, len(values))


def student_t(degrees: int, covered: float = COVERED) -> float:
    """Return t such that Student's distribution has the share `covered` between -t and t.

    By bisection of the angle atan(t / sqrt(degrees)), whose share is a finite series.

    Args:
        degrees: of freedom, from 1 on.
        covered: more than 0 and less than 1.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    low, high = 0.0, math.pi / 2
    while low < (angle := (low + high) / 2) < high:
        low, high = (angle, high) if _share_within(angle, degrees) < covered else (low, angle)
    return math.sqrt(degrees) * math.tan(angle)


def _share_within(angle: float, degrees: int) -> float:
    is_odd = degrees % 2
    term = math.cos(angle) if is_odd else 1.0
    total = 0.0
    for power in range(2 + is_odd, degrees + 1, 2):  # of the cosine, in the term after this one
        total += term
        term *= (power - 1) / power * math.cos(angle) ** 2
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if is_odd else total


def difference(ones: Sequence[float], others: Sequence[float]) -> Mean:
    """Return the mean of paired differences, ones - others: seed by seed.

    Raises:
        ValueError: the numbers of values differ, or are 0.
    """
    if len(ones) != len(others):
        raise ValueError(f"{len(ones)} and {len(others)} values; expected one of each a seed")
    return mean_of([one - other for one, other in zip(ones, others, strict=True)])


def exceeds(mean: Mean, margin: float = 0.0) -> Verdict:
    """Say whether a difference is above `margin`: undecided where its interval holds it."""
    if mean.half_width is None:
        return "undecided"
    if mean.mean - mean.half_width > margin:
        return "yes"
    return "no" if mean.mean + mean.half_width <= margin else "undecided"


def spread_of(values: Sequence[float]) -> Spread:
    """Return the distribution of two or more values."""
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return Spread(
        len(values),
        statistics.fmean(values),
        statistics.stdev(values),
        min(values),
        deciles[0],
        statistics.median(values),
        deciles[8],
        max(values),
    )


def kendall_tau(ones: Sequence[float], others: Sequence[float]) -> float:
    """Return the rank correlation tau-b of two or more pairs; 1 for the same order, nan for ties.

    Raises:
        ValueError: the numbers of values differ.
    """
    if len(ones) != len(others):
        raise ValueError(f"{len(ones)} and {len(others)} values; expected pairs")
    agree = free_ones = free_others = 0
    for i, j in combinations(range(len(ones)), 2):
        a = (ones[i] > ones[j]) - (ones[i] < ones[j])
        b = (others[i] > others[j]) - (others[i] < others[j])
        agree += a * b
        free_ones += a * a
        free_others += b * b
    if not free_ones or not free_others:
        return math.nan
    return agree / math.sqrt(free_ones * free_others)
