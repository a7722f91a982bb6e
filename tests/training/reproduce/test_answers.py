"""Answers: verdicts that follow the figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from training.reproduce.answers import answer
from training.reproduce.config import ReproduceConfig
from training.settings.config import DistillConfig

CONFIG = ReproduceConfig()
ALL = replace(
    CONFIG,
    sandwich_images_seeds=3,
    sandwich_no_smallest_seeds=3,
    taught_seeds=3,
    distill=DistillConfig(answers="answers-{seed}.safetensors"),
    lengths=(2, 4),
    length_seeds=3,
    alone_subnets=8,
    finetuned_seeds=3,
)


def made_results(gap: float, noise: Callable[[int], float]) -> dict[str, dict[str, Any]]:
    """Make up results in which everything is better by `gap`, for seeds with noise."""
    base = {"uniform": 50.0, "sandwich": 50 + gap, "separate": 50 - gap}
    means = {f"{kind}-{i}": mean + noise(i) for kind, mean in base.items() for i in range(3)}
    sizes = {"steps": 10, "seconds": 1.0, "params": 5, "skipped": 0}
    runs = {name: {**sizes, "held_out": [[5, m - 1], [10, m]]} for name, m in means.items()}
    traces = {
        "evolution": [[50.0, 52 + gap + noise(i)] for i in range(3)],
        "random": [[50.0, 52.0] for _ in range(3)],
    }
    evaluate = {
        "random_held_out_percent": [50 + gap * i / 199 for i in range(200)],
        "compared_held_out_percent": {name: [m, m] for name, m in means.items()},
        "test_percent": {"inherited": [60 + noise(i) for i in range(3)], "alone": [60 - gap] * 3},
    }
    return {"train": {"runs": runs}, "search": {"best_so_far": traces}, "evaluate": evaluate}


@pytest.mark.parametrize(
    ("gap", "noise", "verdicts"),
    [
        (1.0, 0.1, dict.fromkeys("abcde", "yes")),
        (-1.0, 0.1, dict.fromkeys("acde", "no")),
        (5.0, 0.1, {"b": "no"}),
        (0.1, 3.0, dict.fromkeys("ac", "undecided")),
    ],
    ids=["better", "worse", "uneven", "noisy"],
)
def test_answers_follow_the_figures(gap: float, noise: float, verdicts: dict[str, str]) -> None:
    answers = answer(made_results(gap, lambda seed: noise * (seed - 1)), CONFIG)
    assert {letter: answers[letter]["verdict"] for letter in verdicts} == verdicts


def test_steps_and_memory_are_compared_too() -> None:
    results = made_results(1.0, lambda seed: 0.1 * seed)
    answers = answer(results, CONFIG)
    assert answers["d"]["uniform_steps_to_match_separate"] == 5
    assert answers["d"]["separate_steps_to_match_uniform"] is None
    assert answers["e"]["sandwich_steps_to_match_uniform"] == 5
    assert answers["d"]["training_state_mib"] == 5 * 20 / 2**20
    results["train"]["runs"]["separate-1"]["held_out"] = []
    assert "uniform_steps_to_match_separate" not in answer(results, CONFIG)["d"]


def test_questions_without_their_measurements_are_left_out() -> None:
    results = made_results(1.0, lambda seed: 0.0)
    del results["evaluate"]["test_percent"]
    answers = answer(results, replace(CONFIG, sandwich_seeds=0, separate_seeds=0))
    assert list(answers) == ["b", "c"]


def made_results_of_all(gap: float, noise: Callable[[int], float]) -> dict[str, dict[str, Any]]:
    """Make up results in which the new questions' methods are better by `gap`."""
    results, evaluate = made_results(gap, noise), dict[str, Any]()
    ranks = [float(n) for n in range(8)]
    scores = {}
    for kind, offset, slope in (
        ("uniform", 0, gap),
        ("sandwich", 0, 0),
        ("separate", 0, 0),
        ("sandwich_images", gap, 0),
        ("sandwich_no_smallest", 2 * gap, 0),
        ("taught", gap, 2 * gap),
    ):
        for i in range(3):
            mean = 50 + offset + noise(i)
            scores[f"{kind}-{i}"] = [mean + slope * (rank - 3.5) for rank in ranks]
            run = {"steps": 10, "seconds": 1.0, "params": 5, "skipped": 0, "held_out": []}
            results["train"]["runs"][f"{kind}-{i}"] = run
    evaluate["compared_held_out_percent"] = scores
    evaluate["alone_held_out_percent"] = ranks
    alone = [60.0 + noise(i) for i in range(3)]
    evaluate["test_percent"] = {
        "inherited": [58.0] * 3,
        "alone": [60.0] * 3,
        "random": {"inherited": [60 + gap + noise(i) for i in range(3)], "alone": [60.0] * 3},
        "lengths": {
            str(n): {"inherited": [a - 2 - gap * (10 - n) for a in alone], "alone": [60.0] * 3}
            for n in (4, 2)
        },
        "finetuned": [60 + gap + noise(i) for i in range(3)],
    }
    results["evaluate"] |= evaluate
    return results


@pytest.mark.parametrize(
    ("gap", "noise", "verdict"),
    [(1.0, 0.1, "yes"), (-1.0, 0.1, "no"), (0.01, 3.0, "undecided")],
    ids=["better", "worse", "noisy"],
)
def test_further_answers_follow_the_figures(gap: float, noise: float, verdict: str) -> None:
    answers = answer(made_results_of_all(gap, lambda seed: noise * (seed - 1)), ALL)
    assert list(answers) == ["a", "a2", "b", "c", "d", "e", "e2", "e3", "e4", "f", "g", "h", "i"]
    expected = dict.fromkeys(["a2", "f", "i"], verdict)
    # Differences between supernets of one seed have no noise.
    expected |= dict.fromkeys(["e2", "e3", "e4", "h", "g"], "no" if gap < 0 else "yes")
    assert {letter: answers[letter]["verdict"] for letter in expected} == expected


def test_gap_is_that_of_each_length() -> None:
    answers = answer(made_results_of_all(1.0, lambda seed: 0.0), ALL)
    gaps = answers["f"]["gap_points_by_epochs"]
    assert {n: gap["mean"] for n, gap in gaps.items()} == {"2": -10, "4": -8, "300": -2}
    assert answers["f"]["difference_points"]["mean"] == 8
    assert answers["i"]["gain_points"]["mean"] == 3


def test_length_of_one_seed_is_shown_but_decides_nothing() -> None:
    results = made_results_of_all(1.0, lambda seed: 0.0)
    lengths = results["evaluate"]["test_percent"]["lengths"]
    lengths["1000"] = {"inherited": [90.0], "alone": [50.0]}
    longer = answer(results, ALL)["f"]
    assert longer["gap_points_by_epochs"]["1000"] == {"mean": 40.0, "ci95": None, "count": 1}
    assert longer["difference_points"]["mean"] == 8
    assert "after 300 epochs than after 2," in longer["rule"]


def test_images_are_counted_by_networks() -> None:
    answers = answer(made_results_of_all(1.0, lambda seed: 0.0), ALL)
    batch = ALL.train.batch_size
    assert answers["e"]["images_seen_by_networks"] == 10 * batch
    assert answers["e"]["sandwich_images_seen_by_networks"] == 10 * batch * 4
    assert answers["e3"]["sandwich_no_smallest_images_seen_by_networks"] == 10 * batch * 3


def test_few_ranks_decide_nothing() -> None:
    results = made_results_of_all(1.0, lambda seed: 0.0)
    del results["evaluate"]["alone_held_out_percent"][-1]
    answers = answer(results, ALL)
    assert (answers["g"]["verdict"], answers["g"]["kendall_tau"]["tau"]) == ("undecided", 1.0)


def test_taught_supernets_are_compared_by_their_ranking_too() -> None:
    results = made_results_of_all(1.0, lambda seed: 0.0)
    scores = results["evaluate"]["compared_held_out_percent"]
    for i in range(3):
        scores[f"uniform-{i}"].reverse()
    taught = answer(results, ALL)["h"]
    assert taught["uniform_kendall_tau"]["tau"] == pytest.approx(-1)
    assert taught["taught_kendall_tau"]["tau"] == pytest.approx(1)
    gain = taught["kendall_tau_gain"]
    assert (gain["tau"], gain["low"]) == (pytest.approx(2), pytest.approx(2))
