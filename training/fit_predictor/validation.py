"""How far a predictor is off: cross-validation, intervals, and picks under random budgets."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.fit_predictor.measured import Array, Measured, count_all
from training.fit_predictor.process import Design, Hyper, fit_both

COVERAGE = 0.9
BUDGETS = 200  # random limits on parameters under which picks are judged

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Validation:
    """How to cross-validate.

    Args:
        folds: parts that are predicted from the others.
        repeats: different divisions into folds.
        iterations: of the optimiser, to fit hyperparameters without a fold.
        seed: of the divisions.

    Raises:
        ValueError: fewer than 2 folds, or no repeat or iteration.
    """

    folds: int = 10
    repeats: int = 3
    iterations: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("folds", 2), ("repeats", 1), ("iterations", 1)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"validation: {name} is {value}; expected {least} or more")


DEFAULT_VALIDATION = Validation()


def cross_validate(
    design: Design, hypers: Sequence[Hyper], measured: Measured, validation: Validation
) -> Array:
    """Predict every subnet from folds without it.

    Args:
        design: of the measured subnets.
        hypers: hyperparameters of all subnets, from which those without a fold are fitted.
        measured: the subnets.
        validation: how.

    Returns:
        Percent. (repeats, n)
    """
    count = len(measured.subnets)
    predicted = np.empty((validation.repeats, count))
    for repeat in range(validation.repeats):
        rng = np.random.default_rng((validation.seed, repeat))
        fold = rng.permutation(count) % validation.folds
        for number in range(validation.folds):
            rows, held_out = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            _, predictor = fit_both(design, measured.top1, rows, validation.iterations, hypers)
            predicted[repeat, held_out] = predictor.predict([measured.subnets[i] for i in held_out])
            _log.info("fold %d of %d, repeat %d", number + 1, validation.folds, repeat + 1)
    return predicted


def half_widths(errors: Array, width: Array) -> dict[int, float]:
    """Return half of the 90 % interval by width.

    Args:
        errors: of cross-validation, without signs. (repeats, n)
        width: embed_dim. (n,)

    Returns:
        The width's RMS error times one quantile of all errors over the RMS error of their width: a
        width may have two dozen subnets, too few for a quantile of their own. The quantile is the
        conformal one: the smallest that 90 % do not exceed, as if there were one subnet more, with
        a larger error.
    """
    widths, of = np.unique(width, return_inverse=True)
    rms = [np.sqrt(np.square(errors[:, of == i]).mean()) for i in range(len(widths))]
    found = np.sort(errors / np.maximum(rms, 1e-9)[of], axis=None)
    rank = math.ceil(COVERAGE * (len(found) + len(errors)))
    quantile = found[min(rank, len(found)) - 1]
    return {value: float(quantile * one) for value, one in zip(widths.tolist(), rms, strict=True)}


def covered(errors: Array, width: Array) -> Array:
    """Return where an interval made from the other half of the subnets holds: (repeats, n)."""
    held = np.empty(errors.shape, dtype=bool)
    half = np.random.default_rng(0).permutation(len(width)) % 2
    for part in (0, 1):
        there, here = half != part, half == part
        halves = half_widths(errors[:, there], width[there])
        most = max(halves.values())
        held[:, here] = errors[:, here] <= [
            halves.get(value, most) for value in width[here].tolist()
        ]
    return held


def summarise(measured: Measured, predicted: Array) -> list[dict[str, Any]]:
    """Return the figures of cross-validation, by file and width; over repeats, the mean.

    Args:
        measured: the subnets.
        predicted: by folds without them. (repeats, n)
    """
    from scipy.stats import kendalltau, spearmanr

    width = np.array([subnet.embed_dim for subnet in measured.subnets])
    params = count_all(measured)
    errors = np.abs(predicted - measured.top1)
    held = covered(errors, width)
    lines = []
    for file in np.unique(measured.file).tolist():
        of_file = measured.file == file
        for part in ("all", *np.unique(width[of_file]).tolist()):
            rows = of_file if part == "all" else of_file & (width == part)
            true, found = measured.top1[rows], predicted[:, rows]
            line = {
                "file": file + 1,
                "embed_dim": part,
                "subnets": int(rows.sum()),
                "rmse": float(np.sqrt(np.square(found - true).mean(1)).mean()),
                "rmse_spread": float(np.ptp(np.sqrt(np.square(found - true).mean(1)))),
                "spearman": float(np.mean([_rank(spearmanr, true, one) for one in found])),
                "kendall": float(np.mean([_rank(kendalltau, true, one) for one in found])),
                "spearman_of_params": _rank(spearmanr, true, params[rows]),
                "coverage": float(held[:, rows].mean()),
                "lost_under_budgets": float(
                    np.mean([lost_under_budgets(params[rows], true, one) for one in found])
                ),
            }
            lines.append({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()})
    return lines


def _rank(correlation: Callable[[Array, Array], Any], one: Array, other: Array) -> float:
    """Return a rank correlation; 0 if either is constant, as with few images and subnets."""
    is_constant = np.ptp(one) == 0 or np.ptp(other) == 0
    return 0.0 if is_constant else float(correlation(one, other).statistic)


def lost_under_budgets(params: Array, top1: Array, predicted: Array) -> float:
    """Return what the best predicted subnet lacks to the best one, on average over random budgets.

    Args:
        params: of each subnet.
        top1: measured.
        predicted: by folds without them.
    """
    rng = np.random.default_rng(0)
    lost = []
    low, high = np.quantile(params, [0.02, 1]).tolist()
    for budget in rng.uniform(low, high, BUDGETS):
        allowed = np.flatnonzero(params <= budget)
        lost.append(top1[allowed].max() - top1[allowed[predicted[allowed].argmax()]])
    return float(np.mean(lost))
