"""Fit a predictor with its intervals, and write it."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from autoformer_zoo.specialization.latency.timing import thread_count
from autoformer_zoo.specialization.predictor import Predictor
from autoformer_zoo.weights.whole_files import complete_file
from training.fit_predictor.measured import Measured
from training.fit_predictor.process import DECIMALS, fit_both, make_design
from training.fit_predictor.validation import (
    DEFAULT_VALIDATION,
    Validation,
    cross_validate,
    half_widths,
    summarise,
)


def fit_predictor(
    measured: Measured, validation: Validation = DEFAULT_VALIDATION, iterations: int = 30
) -> tuple[Predictor, list[dict[str, Any]]]:
    """Fit a predictor, with intervals from cross-validation.

    Args:
        measured: subnets and accuracies.
        validation: how errors are found.
        iterations: of the optimiser, to fit hyperparameters to all subnets.

    Returns:
        The predictor, and the figures of cross-validation.
    """
    design, rows = make_design(measured.subnets), np.arange(len(measured.top1))
    with thread_count(1):
        hypers, predictor = fit_both(design, measured.top1, rows, iterations)
        predicted = cross_validate(design, hypers, measured, validation)
    figures = summarise(measured, predicted)
    width = np.array([subnet.embed_dim for subnet in measured.subnets])
    halves = half_widths(np.abs(predicted - measured.top1), width)
    about = {
        "space": measured.space,
        "subnets": len(measured.subnets),
        "sha256": measured.sha256,
        "validation": asdict(validation),
        "figures": figures,
    }
    half_width = np.round([halves[value] for value in predictor.cells[:, 1].tolist()], DECIMALS)
    return replace(predictor, half_width=half_width, about=np.array(json.dumps(about))), figures


def save_predictor(predictor: Predictor, path: Path) -> None:
    """Write a predictor; the same predictor gives the same bytes."""
    arrays = {field.name: getattr(predictor, field.name) for field in fields(predictor)}
    with complete_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
