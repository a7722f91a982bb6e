"""Rows and their files: nothing is lost, damage is refused, newer rows replace older ones."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.measure.results import (
    FIGURE_COLUMNS,
    RATIO_COLUMNS,
    RESULTS,
    read_rows,
    save_rows,
)
from benchmarks.measure.rows import (
    Row,
    Setting,
    current_commit,
    current_environment,
    latency_row,
    make_row,
    ratio_row,
    throughput_row,
    with_value,
)

ROW = Row(
    *("latency", "a_model", "eager", "fp32", 8, 2, "224x224", "cpu", "a machine, 2 CPUs"),
    *("torch 9", "abc", "2026-01-01T00:00:00+00:00", 12.5, 11.0, 14.0, 50, "ms"),
    "a note, with a comma",
)
RATIO = replace(ROW, baseline="other", value=1.5, low=1.25, high=1.75, unit="", note="")
SETTING = Setting("fp32", 8, 2, "m", input="32x32")


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    save_rows(folder, "rows", [ROW, replace(ROW, model="b"), RATIO])

    assert read_rows(folder / "rows.csv") == [ROW, replace(ROW, model="b")]
    assert read_rows(folder / "rows_ratios.csv") == [RATIO]
    save_rows(folder, "none", [])
    assert sorted(path.name for path in folder.iterdir()) == ["rows.csv", "rows_ratios.csv"]
    assert read_rows(folder / "none.csv") == []


def test_whole_numbers_keep_all_digits_however_often_they_are_saved(tmp_path: Path) -> None:
    rows = [replace(ROW, model=str(value), value=value) for value in (5_867_944, 1e16, 0.0)]
    for _ in range(3):
        save_rows(tmp_path, "rows", [*rows, replace(ROW, value=1.234567)])
    assert read_rows(tmp_path / "rows.csv") == [*rows, replace(ROW, value=1.2346)]


def test_newer_row_replaces_the_older_one(tmp_path: Path) -> None:
    save_rows(tmp_path, "rows", [ROW, replace(ROW, batch=1), replace(ROW, machine="another")])

    newer = replace(ROW, value=10.0, commit="def", versions="torch 10", note="")
    save_rows(tmp_path, "rows", [newer, replace(ROW, model="c")])

    assert read_rows(tmp_path / "rows.csv") == [
        newer,
        replace(ROW, batch=1),
        replace(ROW, machine="another"),
        replace(ROW, model="c"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("what,", "which,", r"unknown columns \['which'\], missing columns \['what'\]"),
        ("12.5", "fast", "rows.csv:2: could not convert string to float: 'fast'"),
        (",eager", "", "rows.csv:2: too many or too few cells"),
        (",eager", ",eager,eager", "rows.csv:2: too many or too few cells"),
    ],
    ids=["column", "not-a-number", "too-short", "too-long"],
)
def test_damaged_file_is_refused_and_left_alone(
    old: str, new: str, text: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    save_rows(tmp_path, "rows", [ROW])
    path.write_text(path.read_text().replace(old, new, 1))
    damaged = path.read_text()

    with pytest.raises(ValueError, match=text):
        save_rows(tmp_path, "rows", [ROW])
    assert path.read_text() == damaged


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.csv")), ids=lambda path: path.name)
def test_files_of_the_repository_can_be_read(path: Path) -> None:
    keys = [row.key for row in read_rows(path)]
    assert keys
    assert len(set(keys)) == len(keys)
    columns = RATIO_COLUMNS if path.stem.endswith("_ratios") else FIGURE_COLUMNS
    assert path.read_text().partition("\n")[0] == ",".join(columns)  # they are a format


def test_rows_are_made_of_times_and_figures() -> None:
    environment = current_environment("cpu", ["onnxruntime"])
    for package in ("python", "torch", "timm", "autoformer_zoo", "onnxruntime"):
        assert f"{package} " in environment.versions
    assert environment.machine.endswith("CPUs")

    single = make_row("top1", 64.3, "%", SETTING, environment)
    assert (single.value, single.low, single.high, single.repeats) == (64.3, 64.3, 64.3, 1)
    times = [float(ms) for ms in range(10, 21)]
    row = latency_row("latency", times, SETTING, environment)
    assert (row.value, row.low, row.high, row.repeats) == (15.0, 11.0, 19.0, 11)
    speed = throughput_row(row, "throughput", 8, "images/s")
    assert (speed.low, speed.high) == (8e3 / 19, 8e3 / 11)  # low is the slow end
    assert with_value(row, "macs", 3.0, "G").competitor == row.competitor
    ratio = ratio_row(row, times, "other", [2 * ms for ms in times])
    assert (ratio.value, ratio.low, ratio.high) == (0.5, 0.5, 0.5)
    assert (ratio.baseline, ratio.repeats) == ("other", 11)


def test_commit_is_dirty_if_anything_but_results_changed(tmp_path: Path) -> None:
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
