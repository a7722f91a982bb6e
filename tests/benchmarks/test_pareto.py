"""The Pareto command: published accuracies stay marked so, latencies are measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pareto
from benchmarks.latency import LatencyOptions
from benchmarks.measure.results import read_rows
from benchmarks.measure.rows import Row
from benchmarks.pareto import main, published_top1


def test_zoo_and_deit_have_their_published_accuracy() -> None:
    top1 = published_top1()
    assert top1["autoformer_tiny"] == 75.3
    assert top1["deit_small_patch16_224"] == 79.8
    assert len(top1) == 9


def test_rows_pair_time_and_published_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(options: LatencyOptions) -> Iterator[Any]:
        yield (
            [
                Row(
                    *("latency", model, "eager", "fp32", 1, 2, "224x224", "cpu", "a machine"),
                    *("torch 9", "abc", "2026-01-01T00:00:00+00:00", 50.0 - i, 9.0, 60.0, 5, "ms"),
                )
                for i, model in enumerate(options.models)
            ],
            [],
        )

    monkeypatch.setattr(pareto, "measure_groups", measure)
    assert main(["--save", "--results", str(tmp_path)]) == 0

    *table, last = capsys.readouterr().out.splitlines()
    assert len(table) == 1 + 9
    assert table[1].startswith("deit_base_patch16_224 ")  # the fastest of these
    assert json.loads(last)["accuracy"] == "published, not measured here"
    rows = read_rows(tmp_path / pareto.ROWS, Row)
    published = [row for row in rows if row.what == "top1_published"]
    assert len(rows) == 18
    assert {(row.note, row.repeats) for row in published} == {
        ("published by the authors, not measured here", 0)
    }


def test_model_without_a_published_accuracy_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--models", "prenas_tiny_7m"]) == 2
    assert "no published accuracy of prenas_tiny_7m; there are" in capsys.readouterr().err
