"""Answers: statistics, and verdicts that follow the figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from training.reproduce.answers import answer, difference, exceeds, mean_of, spread_of
from training.reproduce.config import ReproduceConfig

CONFIG = ReproduceConfig()


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
