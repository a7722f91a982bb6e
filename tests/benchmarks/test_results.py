"""Files of rows: nothing is lost, nothing foreign comes in, newer rows replace older ones."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.measure.results import read_rows, save_rows
from benchmarks.measure.rows import (
    RatioRow,
    Row,
    Setting,
    current_commit,
    current_environment,
    single,
)

ROW = Row(
    *("latency", "a_model", "eager", "fp32", 8, 2, "224x224", "cpu", "a machine, 2 CPUs"),
    *("torch 9", "abc", "2026-01-01T00:00:00+00:00", 12.5, 11.0, 14.0, 50, "ms"),
    "a note, with a comma",
)
RATIO = RatioRow(
    *("latency", "a_model", "other", "eager", "fp32", 8, 2, "224x224", "cpu", "a machine"),
    *("torch 9", "abc", "2026-01-01T00:00:00+00:00", 1.5, 1.25, 1.75, 50),
)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    save_rows(tmp_path / "new" / "rows.csv", [ROW, replace(ROW, model="b")])
    save_rows(tmp_path / "ratios.csv", [RATIO])

    assert read_rows(tmp_path / "new" / "rows.csv", Row) == [ROW, replace(ROW, model="b")]
    assert read_rows(tmp_path / "ratios.csv", RatioRow) == [RATIO]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["rows.csv"]


def test_newer_row_takes_the_place_of_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    save_rows(path, [ROW, replace(ROW, batch=1), replace(ROW, machine="another")])

    newer = replace(ROW, median=10.0, commit="def", versions="torch 10", note="")
    save_rows(path, [newer, replace(ROW, model="c")])

    assert read_rows(path, Row) == [
        newer,
        replace(ROW, batch=1),
        replace(ROW, machine="another"),
        replace(ROW, model="c"),
    ]


def test_no_rows_make_no_file(tmp_path: Path) -> None:
    save_rows(tmp_path / "rows.csv", [])
    assert not (tmp_path / "rows.csv").exists()
    assert read_rows(tmp_path / "rows.csv", Row) == []


def test_other_columns_are_refused_and_the_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    save_rows(path, [ROW])
    text = path.read_text().replace("what,", "which,", 1)
    path.write_text(text)

    with pytest.raises(ValueError, match=r"unknown columns \['which'\], missing columns \['what'"):
        save_rows(path, [ROW])
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("12.5", "fast", "rows.csv:2: could not convert string to float: 'fast'"),
        (",eager", "", "rows.csv:2: 17 cells; expected 18"),
    ],
    ids=["no-number", "too-short"],
)
def test_damaged_rows_are_refused(old: str, new: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    save_rows(path, [ROW])
    path.write_text(path.read_text().replace(old, new))

    with pytest.raises(ValueError, match=text):
        read_rows(path, Row)


def test_environment_says_where_and_with_what() -> None:
    environment = current_environment("cpu", ["onnxruntime"])

    assert environment.device == "cpu"
    assert environment.machine.endswith("CPUs")
    for package in ("python", "torch", "timm", "autoformer_zoo", "onnxruntime"):
        assert f"{package} " in environment.versions


def test_single_figures_have_no_spread() -> None:
    row = single("top1", "m", 64.3, "%", Setting("fp32", 1, 2), current_environment("cpu"))
    assert (row.median, row.p10, row.p90, row.repeats) == (64.3, 64.3, 64.3, 1)


def test_commit_is_dirty_where_anything_but_results_changed(tmp_path: Path) -> None:
    assert current_commit(tmp_path) == "unknown"
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    code, rows = tmp_path / "code.py", tmp_path / "benchmarks" / "results" / "rows.csv"
    for file in (code, rows):
        file.write_text("first")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "first")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    commit = current_commit(rows.parent)
    assert len(commit) >= 7
    rows.write_text("second")
    assert current_commit(rows.parent) == commit
    code.write_text("second")
    assert current_commit(rows.parent) == f"{commit}-dirty"
