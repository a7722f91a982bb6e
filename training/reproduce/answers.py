"""The questions of a reproduction, answered from what its stages measured.

Pure: JSON-able values in and out. Every answer has its numbers, a verdict (yes, no, undecided) and
the rule behind it; the text around them is `report.py`'s.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

INHERITED_MARGIN = 0.2  # points: how far the paper's inherited accuracies are from retrained ones
# Of a parameter in training, in fp32: weight, gradient, AdamW's two moments, average.
TRAINING_BYTES = 5 * 4
WELL_TRAINED_COUNT = 200  # random subnets, fewer say little
WELL_TRAINED_MARGIN = 2.0  # points between the 10th percentile and the best random subnet


def answer(stages: Mapping[str, Mapping[str, Any]], evaluations: int) -> dict[str, Any]:
    """Answer all questions.

    Args:
        stages: what the stages train, search, retrain and evaluate left.
        evaluations: subnets that a search was allowed to score.

    Returns:
        Answers by letter: question, verdict, numbers. (d) and (e) are missing where their supernets
        were not trained, (a) where the test set was not opened.
    """
    train, search, evaluate = stages["train"], stages["search"], stages["evaluate"]
    answers: dict[str, Any] = {}
    if "test_percent" in evaluate:
        answers["a"] = _inherited(evaluate["test_percent"])
    answers["b"] = _well_trained(evaluate["random_held_out_percent"])
    answers["c"] = _evolution(search["best_so_far"], evaluations)
    if any(name.startswith("separate") for name in train["runs"]):
        answers["d"] = _against("separate", train["runs"], evaluate)
    if any(name.startswith("sandwich") for name in train["runs"]):
        answers["e"] = _against("sandwich", train["runs"], evaluate)
    return {"answers": answers}


def _inherited(test: Mapping[str, list[float]]) -> dict[str, Any]:
    gap = difference(test["inherited"], test["alone"])
    return {
        "question": "Do inherited weights match the same subnet trained alone, equally long?",
        "rule": f"not more than {INHERITED_MARGIN} points worse on the test set, beyond doubt",
        "verdict": exceeds(gap, -INHERITED_MARGIN),
        "inherited_percent": _told(mean_of(test["inherited"])),
        "alone_percent": _told(mean_of(test["alone"])),
        "difference_points": _told(gap),
    }


def _well_trained(scores: list[float]) -> dict[str, Any]:
    spread = spread_of(scores)
    verdict: Verdict = "yes" if spread.most - spread.p10 <= WELL_TRAINED_MARGIN else "no"
    if spread.count < WELL_TRAINED_COUNT:
        verdict = "undecided"
    return {
        "question": "Are many subnets of one supernet well trained?",
        "rule": f"nine of ten random subnets within {WELL_TRAINED_MARGIN} points of the best one, "
        f"of at least {WELL_TRAINED_COUNT}",
        "verdict": verdict,
        "held_out_percent": asdict(spread),
    }


def _evolution(traces: Mapping[str, list[list[float]]], evaluations: int) -> dict[str, Any]:
    ends = {name: [trace[-1] for trace in each] for name, each in traces.items()}
    # The same budget for both: where one ran out of new subnets, its last value stands.
    means = {name: [statistics.fmean(trace) for trace in each] for name, each in traces.items()}
    gap = difference(ends["evolution"], ends["random"])
    return {
        "question": "Does evolution beat random search at equal evaluations?",
        "rule": "its best subnet is better on the held-out images, beyond doubt",
        "verdict": exceeds(gap),
        "evaluations": evaluations,
        "evolution_percent": _told(mean_of(ends["evolution"])),
        "random_percent": _told(mean_of(ends["random"])),
        "difference_points": _told(gap),
        "difference_along_the_way_points": _told(difference(means["evolution"], means["random"])),
    }


def _against(
    other: str, runs: Mapping[str, Mapping[str, Any]], evaluate: Mapping[str, Any]
) -> dict[str, Any]:
    """Compare uniform sampling with entangled weights to another way, seed by seed."""
    scores = evaluate["compared_held_out_percent"]
    numbers = [name.partition("-")[2] for name in runs if name.startswith(other)]
    ours = [statistics.fmean(scores[f"uniform-{n}"]) for n in numbers]
    theirs = [statistics.fmean(scores[f"{other}-{n}"]) for n in numbers]
    is_separate = other == "separate"
    gap = difference(ours, theirs) if is_separate else difference(theirs, ours)
    seconds, other_seconds, params, other_params = (
        [runs[f"{name}-{n}"][key] for n in numbers]
        for key in ("seconds", "params")
        for name in ("uniform", other)
    )
    question = (
        "Does weight entanglement beat classic weight sharing, equally long trained?"
        if is_separate
        else "Do the sandwich rule and in-place distillation add something, in as many steps?"
    )
    return {
        "question": question,
        "rule": "the mean of the same random subnets on the held-out images, beyond doubt",
        "verdict": exceeds(gap),
        "uniform_percent": _told(mean_of(ours)),
        f"{other}_percent": _told(mean_of(theirs)),
        "difference_points": _told(gap),
        "steps": runs[f"uniform-{numbers[0]}"]["steps"],
        **_steps_to_match(other, [(runs[f"uniform-{n}"], runs[f"{other}-{n}"]) for n in numbers]),
        "params": params[0],
        f"{other}_params": other_params[0],
        "training_state_mib": params[0] * TRAINING_BYTES / 2**20,
        f"{other}_training_state_mib": other_params[0] * TRAINING_BYTES / 2**20,
        "seconds": _told(mean_of(seconds)),
        f"{other}_seconds": _told(mean_of(other_seconds)),
    }


def _steps_to_match(
    other: str, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> dict[str, Any]:
    """Say after how many steps each way was as good as the other one in the end, on average.

    By the mean of the smallest and the largest subnet, which training measures now and then; None
    where some seed never came that far, and nothing where nothing was measured.
    """
    ways = {f"uniform_steps_to_match_{other}": (0, 1), f"{other}_steps_to_match_uniform": (1, 0)}
    told: dict[str, Any] = {}
    for name, (one, another) in ways.items():
        curves = [(pair[one]["held_out"], pair[another]["held_out"]) for pair in pairs]
        if not all(curve and goal for curve, goal in curves):
            return {}
        reached = [
            next((step for step, percent in curve if percent >= goal[-1][1]), None)
            for curve, goal in curves
        ]
        steps = [step for step in reached if step is not None]
        told[name] = round(statistics.fmean(steps)) if len(steps) == len(reached) else None
    return told


def _told(mean: Mean) -> dict[str, Any]:
    return asdict(mean)


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
