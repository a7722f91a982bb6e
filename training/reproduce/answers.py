"""The questions of a reproduction, answered from what its phases measured.

Pure: JSON-able values in and out. Every answer has its numbers, a verdict (yes, no, undecided) and
the rule behind it; the statistics are in `intervals.py`, the text around them in `report.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from training.reproduce.config import ReproduceConfig
from training.reproduce.intervals import (
    Verdict,
    difference,
    exceeds,
    is_positive,
    mean_of,
    rank_correlation,
    rank_correlation_gain,
    spread_of,
)
from training.reproduce.trainings import TrainingRun, compared_supernets

# Points, of top-1 in percent: how far the paper's inherited accuracies are from retrained ones.
INHERITED_MARGIN = 0.2
# What training keeps of a parameter, in fp32: weight, gradient, average, and moments: AdamW's two,
# or the one of Muon, which leaves to (N)AdamW what is not a matrix of weights. Of other optimizers
# the size is not given.
NUMBER_BYTES = 4
KEPT_NUMBERS = {"adamw": 5, "muon": 4, "nmuon": 4}
WELL_TRAINED_COUNT = 200  # random subnets; fewer show little
WELL_TRAINED_MARGIN = 2.0  # points between the 10th percentile and the best random subnet
RANKED_COUNT = 8  # random subnets trained alone; the ranks of fewer show little


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two kinds of supernets to compare, seed by seed.

    Args:
        letter: of the question.
        base: a kind of supernet.
        other: another one.
        better: the one that is expected to be better.
        question: whether it is.
    """

    letter: str
    base: str
    other: str
    better: str
    question: str


COMPARISONS = (
    Comparison(
        *("d", "uniform", "separate", "uniform"),
        "Does weight entanglement beat classic weight sharing, equally long trained?",
    ),
    Comparison(
        *("e", "uniform", "sandwich", "sandwich"),
        "Do the sandwich rule and in-place distillation add something, in as many steps?",
    ),
    Comparison(
        *("e2", "uniform", "sandwich_images", "sandwich_images"),
        "Do the sandwich rule and in-place distillation add something when networks see as many "
        "images in all?",
    ),
    Comparison(
        *("e3", "uniform", "sandwich_no_smallest", "sandwich_no_smallest"),
        "Does a sandwich without the smallest subnet add something, at as many images?",
    ),
    Comparison(
        *("e4", "sandwich_images", "sandwich_no_smallest", "sandwich_no_smallest"),
        "Does training the smallest subnet in every step hurt the others, at as many images?",
    ),
    Comparison(
        *("h", "uniform", "taught", "taught"), "Does a teacher add something, in as many steps?"
    ),
)


def answer(results: Mapping[str, Mapping[str, Any]], config: ReproduceConfig) -> dict[str, Any]:
    """Answer all questions.

    Args:
        results: of the phases train, search and evaluate.
        config: of the reproduction.

    Returns:
        Answers by letter: question, rule, verdict, numbers. Without (a) if the test set was not
        opened, and without those whose trainings the config left out.
    """
    runs, evaluated = results["train"]["runs"], results["evaluate"]
    scores, test = evaluated["compared_held_out_percent"], evaluated.get("test_percent", {})
    answers: dict[str, Any] = {"b": _well_trained(evaluated["random_held_out_percent"])}
    evaluations = config.search.evolution.evaluations
    answers["c"] = _evolution(results["search"]["best_so_far"], evaluations)
    if test:
        answers["a"] = _inherited(test)
    if "random" in test:
        answers["a2"] = _inherited_by_random(test["random"])
    for comparison in COMPARISONS:
        if min(config.count(comparison.base), config.count(comparison.other)):
            answers[comparison.letter] = _compare(comparison, runs, scores, config)
    if "lengths" in test:
        answers["f"] = _longer(test, config)
    if alone := evaluated.get("alone_held_out_percent"):
        answers["g"] = _ranking(scores, alone, config)
        if config.taught_seeds:
            answers["h"] |= _taught_ranking(scores, alone, config)
    if "finetuned" in test:
        answers["i"] = _finetuned(test, config)
    return {letter: answers[letter] for letter in sorted(answers)}


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


def _inherited_by_random(test: Mapping[str, list[float]]) -> dict[str, Any]:
    return {
        **_inherited(test),
        "question": "Do inherited weights match random subnets trained alone, equally long?",
        "subnets": len(test["alone"]),
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
    comparison: Comparison,
    runs: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, list[float]],
    config: ReproduceConfig,
) -> dict[str, Any]:
    """Compare two kinds of supernets, seed by seed.

    Args:
        comparison: which, and the question.
        runs: what training reported of each run.
        scores: of the same subnets in each run.
        config: of the reproduction.
    """
    kinds = (comparison.base, comparison.other)
    seeds, trained = min(map(config.count, kinds)), compared_supernets(config)
    ours, theirs = ([runs[f"{kind}-{i}"] for i in range(seeds)] for kind in kinds)
    means = {
        kind: [statistics.fmean(scores[f"{kind}-{i}"]) for i in range(seeds)] for kind in kinds
    }
    base, other = kinds
    worse = other if comparison.better == base else base
    gap = difference(means[comparison.better], means[worse])
    seen = {}
    for kind in kinds:
        train = trained[TrainingRun(kind, 0)]
        steps = runs[f"{kind}-0"]["steps"]
        seen[kind] = steps * train.batch_size * train.subnets_per_step
    params, other_params = ours[0]["params"], theirs[0]["params"]
    return {
        "question": comparison.question,
        "rule": "the mean of the same random subnets on the held-out images, beyond doubt",
        "verdict": exceeds(gap),
        f"{base}_percent": asdict(mean_of(means[base])),
        f"{other}_percent": asdict(mean_of(means[other])),
        "difference_points": asdict(gap),
        "steps": ours[0]["steps"],
        f"{other}_steps": theirs[0]["steps"],
        "images_seen_by_networks": seen[base],
        f"{other}_images_seen_by_networks": seen[other],
        **_steps_to_match(ours, theirs, base, other),
        "params": params,
        f"{other}_params": other_params,
        **_state_sizes(params, other_params, other, config.train.opt),
        "seconds": asdict(mean_of([run["seconds"] for run in ours])),
        f"{other}_seconds": asdict(mean_of([run["seconds"] for run in theirs])),
    }


def _state_sizes(params: int, other_params: int, other: str, opt: str) -> dict[str, float]:
    if opt not in KEPT_NUMBERS:
        return {}
    mib = KEPT_NUMBERS[opt] * NUMBER_BYTES / 2**20
    return {"training_state_mib": params * mib, f"{other}_training_state_mib": other_params * mib}


def _steps_to_match(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], base: str, other: str
) -> dict[str, int | None]:
    """Return how many steps each kind needs to reach the other's final accuracy, on average.

    By the mean of the smallest and the largest subnet, which training measures between epochs. None
    if a seed never reached it; empty if nothing was measured.
    """
    if not all(run["held_out"] for run in (*ours, *theirs)):
        return {}
    return {
        f"{base}_steps_to_match_{other}": _mean_steps(ours, theirs),
        f"{other}_steps_to_match_{base}": _mean_steps(theirs, ours),
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


def _longer(test: Mapping[str, Any], config: ReproduceConfig) -> dict[str, Any]:
    measured = {int(epochs): pair for epochs, pair in test["lengths"].items()}
    measured[config.train.epochs] = test
    gaps = {
        epochs: [i - a for i, a in zip(pair["inherited"], pair["alone"], strict=True)]
        for epochs, pair in sorted(measured.items())
    }
    # A length of one seed is shown, but decides nothing where others have more.
    repeated = {epochs for epochs, gap in gaps.items() if len(gap) > 1}
    compared = repeated if len(repeated) > 1 else gaps.keys()
    shortest, longest = min(compared), max(compared)
    seeds = min(len(gaps[shortest]), len(gaps[longest]))
    change = difference(gaps[longest][:seeds], gaps[shortest][:seeds])
    return {
        "question": "Does the gap between inherited weights and the subnet trained alone close "
        "with longer training?",
        "rule": f"inherited minus alone on the test set is higher after {longest} epochs than "
        f"after {shortest}, beyond doubt",
        "verdict": exceeds(change),
        "difference_points": asdict(change),
        "gap_points_by_epochs": {str(n): asdict(mean_of(gap)) for n, gap in gaps.items()},
    }


def _ranking(
    scores: Mapping[str, list[float]], alone: Sequence[float], config: ReproduceConfig
) -> dict[str, Any]:
    inherited = inherited_means(scores, "uniform", config.seeds, len(alone))
    tau = rank_correlation(inherited, alone)
    return {
        "question": "Do inherited weights rank subnets as training each alone does?",
        "rule": f"Kendall's tau on the held-out images above 0, beyond doubt, of at least "
        f"{RANKED_COUNT} random subnets",
        "verdict": is_positive(tau, RANKED_COUNT),
        "kendall_tau": asdict(tau),
        "subnets": len(alone),
    }


def _taught_ranking(
    scores: Mapping[str, list[float]], alone: Sequence[float], config: ReproduceConfig
) -> dict[str, Any]:
    uniform, taught = (
        inherited_means(scores, kind, config.taught_seeds, len(alone))
        for kind in ("uniform", "taught")
    )
    return {
        "uniform_kendall_tau": asdict(rank_correlation(uniform, alone)),
        "taught_kendall_tau": asdict(rank_correlation(taught, alone)),
        "kendall_tau_gain": asdict(rank_correlation_gain(taught, uniform, alone)),
    }


def inherited_means(
    scores: Mapping[str, list[float]], kind: str, seeds: int, count: int
) -> list[float]:
    """Return the mean score over supernets of a kind, of each of the first `count` subnets."""
    by_seed = [scores[f"{kind}-{i}"][:count] for i in range(seeds)]
    return [statistics.fmean(of_subnet) for of_subnet in zip(*by_seed, strict=True)]


def _finetuned(test: Mapping[str, list[float]], config: ReproduceConfig) -> dict[str, Any]:
    tuned = test["finetuned"]
    inherited, alone = test["inherited"][: len(tuned)], test["alone"][: len(tuned)]
    gap, epochs = difference(tuned, alone), config.finetuned_epochs
    return {
        "question": f"Do inherited weights that are fine-tuned for {epochs} "
        f"epoch{'s' * (epochs > 1)} match the subnet trained alone for {config.train.epochs}?",
        "rule": f"not more than {INHERITED_MARGIN} points worse on the test set, beyond doubt",
        "verdict": exceeds(gap, -INHERITED_MARGIN),
        "inherited_percent": asdict(mean_of(inherited)),
        "finetuned_percent": asdict(mean_of(tuned)),
        "alone_percent": asdict(mean_of(alone)),
        "difference_points": asdict(gap),
        "gain_points": asdict(difference(tuned, inherited)),
    }
