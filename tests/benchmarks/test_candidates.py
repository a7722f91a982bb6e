"""The comparison of search speeds: every way is timed, rankings of two precisions are compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import candidates
from benchmarks.candidates import BASELINE, main
from benchmarks.measure.results import read_rows
from benchmarks.measure.rows import RatioRow, Row
from benchmarks.train_step import RATIOS, ROWS
from tests.helpers.made_training import MINI


def test_every_way_is_told_against_the_explicit_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    few = "--images 4 --batch-size 2 --explicit-batch-size 4 --rounds 3 --bf16 --save"
    results = ["--results", str(tmp_path)]
    assert main(["--space", MINI.to_json(), *few.split(), *results]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = read_rows(tmp_path / ROWS, Row)
    assert [(row.backend, row.precision, row.batch) for row in rows[::2]] == [
        (*BASELINE, 4),
        ("extracted", "fp32", 2),
        ("extracted", "bf16", 2),
    ]
    for time, speed in zip(rows[::2], rows[1::2], strict=True):
        assert speed.unit == "candidates/s"
        assert speed.median == pytest.approx(1e3 / time.median, rel=1e-3)
    ratios = read_rows(tmp_path / RATIOS, RatioRow)
    assert [ratio.precision for ratio in ratios] == ["fp32", "bf16"]
    assert {ratio.baseline for ratio in ratios} == {"explicit fp32, 4 at a time"}
    assert ratios[0].ratio == pytest.approx(rows[2].median / rows[0].median, rel=1e-3)
    assert len(report["rows"]) == 6


def test_unknown_space_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--space", "huge"]) == 2
    assert "space 'huge' is unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--images 0", "images is 0; expected 1 or more"),
        ("--batch-size 0", ": batch_size is 0; expected 1 or more"),
        ("--explicit-batch-size -1", "explicit_batch_size is -1; expected 1 or more"),
        ("--rounds 0", "rounds is 0; expected 1 or more"),
    ],
)
def test_mistake_is_one_line_before_anything_is_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: str, text: str
) -> None:
    monkeypatch.setattr(candidates, "measure", lambda *_: pytest.fail("it was timed"))
    assert main(["--space", MINI.to_json(), *flags.split()]) == 2
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1
