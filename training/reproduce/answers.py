"""The questions of a reproduction, answered from what its phases measured.

Pure: JSON-able values in and out. Every answer has its numbers, a verdict (yes, no, undecided) and
the rule behind it; the text around them is in `report.py`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from training.reproduce.config import ReproduceConfig

Verdict = Literal["yes", "no", "undecided"]

CONFIDENCE = 0.95  # of an interval around a mean
# Points, of top-1 in percent: how far the paper's inherited accuracies are from retrained ones.
INHERITED_MARGIN = 0.2
# Of a parameter in training, in fp32: weight, gradient, AdamW's two moments, average.
TRAINING_BYTES = 5 * 4
WELL_TRAINED_COUNT = 200  # random subnets; fewer show little
WELL_TRAINED_MARGIN = 2.0  # points between the 10th percentile and the best random subnet


def answer(results: Mapping[str, Mapping[str, Any]], config: ReproduceConfig) -> dict[str, Any]:
    """Answer all questions.

    Args:
        results: of the phases train, search and evaluate.
        config: of the reproduction.

    Returns:
        Answers by letter: question, rule, verdict, numbers. Without (a) if the test set was not
        opened, and without (d) and (e) if their supernets were not trained.
    """
    runs, evaluated = results["train"]["runs"], results["evaluate"]
    scores = evaluated["compared_held_out_percent"]
    answers: dict[str, Any] = {}
    if "test_percent" in evaluated:
        answers["a"] = _inherited(evaluated["test_percent"])
    answers["b"] = _well_trained(evaluated["random_held_out_percent"])
    evaluations = config.search.evolution.evaluations
    answers["c"] = _evolution(results["search"]["best_so_far"], evaluations)
    if config.separate_seeds:
        answers["d"] = {
            "question": "Does weight entanglement beat classic weight sharing, equally long "
            "trained?",
            **_compare(runs, scores, "separate", config.separate_seeds, better="uniform"),
        }
    if config.sandwich_seeds:
        answers["e"] = {
            "question": "Do the sandwich rule and in-place distillation add something, in as many "
            "steps?",
            **_compare(runs, scores, "sandwich", config.sandwich_seeds, better="sandwich"),
        }
    return answers


def _inherited(test: Mapping[str, list[float]]) -> dict[str, Any]:
    gap = difference(test["inherited"], test["alone"])
    return {
        "question": "Do inherited weights match the same subnet trained alone, equally long?",
        "rule": f"not more than {INHERITED_MARGIN} points worse on the test set, beyond doubt",
        "verdict": exceeds(gap, -INHERITED_MARGIN),
        "inherited_percent": asdict(mean_of(test["inherited"])),
        "alone_percent": asdict(mean_of(test["alone"])),
        "difference_points": asdict(gap),
    }


def _well_trained(scores: list[float]) -> dict[str, Any]:
    spread = spread_of(scores)
    verdict: Verdict = "yes" if spread["max"] - spread["p10"] <= WELL_TRAINED_MARGIN else "no"
    return {
        "question": "Are many subnets of one supernet well trained?",
        "rule": f"nine of ten random subnets within {WELL_TRAINED_MARGIN} points of the best one, "
        f"of at least {WELL_TRAINED_COUNT}",
        "verdict": verdict if len(scores) >= WELL_TRAINED_COUNT else "undecided",
        "held_out_percent": spread,
    }


def _evolution(traces: Mapping[str, list[list[float]]], evaluations: int) -> dict[str, Any]:
    # The same budget for both: a search that ran out of new subnets keeps its last value.
    ends = {name: [trace[-1] for trace in kind] for name, kind in traces.items()}
    means = {name: [statistics.fmean(trace) for trace in kind] for name, kind in traces.items()}
    gap = difference(ends["evolution"], ends["random"])
    along = difference(means["evolution"], means["random"])
    return {
        "question": "Does evolution beat random search at equal evaluations?",
        "rule": "its best subnet is better on the held-out images, beyond doubt",
        "verdict": exceeds(gap),
        "evaluations": evaluations,
        "evolution_percent": asdict(mean_of(ends["evolution"])),
        "random_percent": asdict(mean_of(ends["random"])),
        "difference_points": asdict(gap),
        "difference_along_the_way_points": asdict(along),
    }


def _compare(
    runs: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, list[float]],
    other: str,
    seeds: int,
    better: str,
) -> dict[str, Any]:
    """Compare another kind of supernet with the uniform ones, seed by seed.

    Args:
        runs: what training reported of each run.
        scores: of the same subnets in each run.
        other: the other kind.
        seeds: number of runs of that kind.
        better: the kind that is expected to be better.
    """
    kinds = ("uniform", other)
    ours, theirs = ([runs[f"{kind}-{i}"] for i in range(seeds)] for kind in kinds)
    means = {
        kind: [statistics.fmean(scores[f"{kind}-{i}"]) for i in range(seeds)] for kind in kinds
    }
    worse = other if better == "uniform" else "uniform"
    gap = difference(means[better], means[worse])
    params, other_params = ours[0]["params"], theirs[0]["params"]
    return {
        "rule": "the mean of the same random subnets on the held-out images, beyond doubt",
        "verdict": exceeds(gap),
        "uniform_percent": asdict(mean_of(means["uniform"])),
        f"{other}_percent": asdict(mean_of(means[other])),
        "difference_points": asdict(gap),
        "steps": ours[0]["steps"],
        **_steps_to_match(ours, theirs, other),
        "params": params,
        f"{other}_params": other_params,
        "training_state_mib": params * TRAINING_BYTES / 2**20,
        f"{other}_training_state_mib": other_params * TRAINING_BYTES / 2**20,
        "seconds": asdict(mean_of([run["seconds"] for run in ours])),
        f"{other}_seconds": asdict(mean_of([run["seconds"] for run in theirs])),
    }


def _steps_to_match(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], other: str
) -> dict[str, int | None]:
    """Return how many steps each kind needs to reach the other's final accuracy, on average.

    By the mean of the smallest and the largest subnet, which training measures between epochs. None
    if a seed never reached it; empty if nothing was measured.
    """
    if not all(run["held_out"] for run in (*ours, *theirs)):
        return {}
    return {
        f"uniform_steps_to_match_{other}": _mean_steps(ours, theirs),
        f"{other}_steps_to_match_uniform": _mean_steps(theirs, ours),
    }


def _mean_steps(
    runs: Sequence[Mapping[str, Any]], goals: Sequence[Mapping[str, Any]]
) -> int | None:
    steps = []
    for run, goal in zip(runs, goals, strict=True):
        final = goal["held_out"][-1][1]
        reached = [step for step, percent in run["held_out"] if percent >= final]
        if not reached:
            return None
        steps.append(reached[0])
    return round(statistics.fmean(steps))


# Statistics


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
