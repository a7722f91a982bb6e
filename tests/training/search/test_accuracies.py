"""Accuracies of random subnets: resumed, and in the form that a predictor is fitted to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.made_search import make_task
from training.fit_predictor.measured import read_measured
from training.search import evaluation
from training.search.accuracies import measure_accuracies


def test_accuracies_are_those_of_the_subnets_and_more_can_be_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task()
    first = measure_accuracies(task, tmp_path, 5, progress=False)
    scored = []

    def count(*arguments: object) -> float:
        scored.append(arguments)
        return 50.0

    monkeypatch.setattr(evaluation, "inherited_accuracy", count)
    more = measure_accuracies(task, tmp_path, 8, progress=False)
    assert more["rows"][:5] == first["rows"]
    assert len(scored) == 3
    measured = read_measured([tmp_path / "accuracies.json"])
    monkeypatch.undo()
    assert measured.top1[:5].tolist() == [task.accuracy(subnet) for subnet in measured.subnets[:5]]
    assert json.loads((tmp_path / "accuracies.json").read_text())["supernet"] == "made up"


def test_accuracies_of_other_weights_are_refused(tmp_path: Path) -> None:
    task = make_task()
    measure_accuracies(task, tmp_path, 1, progress=False)
    with pytest.raises(ValueError, match="other weights"):
        measure_accuracies(
            replace(task, identity={"supernet": "other weights"}), tmp_path, 1, progress=False
        )
