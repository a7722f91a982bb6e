"""Tables and images: made from rows alone, stale ones named, pages otherwise untouched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import accuracy, attention, latency, pareto, startup
from benchmarks.measure.results import RESULTS, read_rows, save_rows
from benchmarks.measure.rows import RatioRow, Row
from benchmarks.report.__main__ import fill_tables, main
from benchmarks.report.plots import PLOTS, draw_plot, is_stale, rows_of_plot
from benchmarks.report.tables import NOT_MEASURED, TABLES, make_table

ROW = Row(
    *("latency", "a_model", "eager", "fp32", 8, 2, "224x224", "cpu", "a machine, 2 CPUs"),
    *("torch 9", "abc", "2026-01-01T00:00:00+00:00", 123.4, 99.9, 0.123, 50, "ms"),
)
RATIO = RatioRow(
    *("latency", "a_model", "other", "onnxruntime", "fp32", 8, 2, "224x224", "cpu"),
    *("a machine, 2 CPUs", "torch 9", "abc", "2026-01-01T00:00:00+00:00", 1.5, 1.25, 1.75, 50),
)
PAGE = "Before\n<!-- benchmarks: {} -->\nold\n<!-- end -->\nAfter\n"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder of rows with something for every table of the CPU."""
    folder = tmp_path / "results"
    onnx = replace(ROW, backend="onnxruntime", median=50.0)
    memory = replace(ROW, what="peak_memory", median=77.0, unit="MiB")
    save_rows(folder / latency.ROWS, [ROW, memory, onnx])
    save_rows(folder / latency.RATIOS, [RATIO])
    grid = replace(ROW, backend="eager", input="7x7 grid, 3 heads", median=2.0)
    forms = [replace(grid, model=form) for form in ("plain", "explicit", "augmented")]
    larger = [replace(row, input="14x14 grid, 3 heads", median=8.0) for row in forms]
    skipped = replace(larger[1], what="peak_memory", median=9e3, repeats=0, note="estimated")
    save_rows(folder / attention.ROWS, [*forms, larger[0], larger[2], skipped])
    total = replace(ROW, what="total", input="warm", median=900.0)
    save_rows(folder / startup.ROWS, [total, replace(total, what="create_model", median=70.0)])
    top1 = replace(ROW, what="top1", model="autoformer_nano", median=64.33, repeats=10_000)
    save_rows(folder / accuracy.ROWS, [top1, replace(top1, model="another", median=1.0)])
    for model, ms, percent in (("autoformer_tiny", 30.0, 75.3), ("deit_tiny", 20.0, 72.2)):
        row = replace(ROW, model=model, median=ms)
        top1 = replace(row, what="top1_published", median=percent)
        save_rows(folder / pareto.ROWS, [row, top1])
    return folder


def test_tables_hold_the_rows_and_say_where_they_come_from(results: Path) -> None:
    table = make_table("latency-cpu", results)

    header, _, line, other, _, caption = table.splitlines()
    assert header.startswith("| model | backend |")
    assert "| `a_model` | eager | fp32 | 224x224 | 8 | 123 (99.9 to 0.12) |" in line
    assert "| 77.0 |" in line
    assert "onnxruntime" in other
    assert caption == "a machine, 2 CPUs, 2 threads; 2026-01-01; torch 9; commit abc."


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ratios-cpu", "| `a_model` | `other` | onnxruntime | fp32 | 224x224 | 8 | 1.50 (1.25 to"),
        ("onnx-cpu", "| `a_model` | fp32 | 8 | 50.0 | - | - | 1.50 (1.25 to 1.75) |"),
        ("attention-cpu", "| 14x14 grid, 3 heads | 8.00 | - | - | 8.00 | - | (9000) | - | - |"),
        ("startup", "| `a_model` | warm | 70.0 | 900 |"),
        ("accuracy-nano", "| 10000 | 64.33 | - | - |"),
        (
            "pareto-cpu",
            "| `deit_tiny` | 8 | 20.0 | 72.2 |\n| `autoformer_tiny` | 8 | 30.0 | 75.3 |",
        ),
    ],
)
def test_every_table_shows_its_figures(name: str, text: str, results: Path) -> None:
    assert text in make_table(name, results)


def test_nano_table_leaves_others_out(results: Path) -> None:
    assert "another" in make_table("accuracy", results)
    assert "another" not in make_table("accuracy-nano", results)


@pytest.mark.parametrize("name", TABLES)
def test_table_without_rows_says_so(name: str, tmp_path: Path) -> None:
    assert make_table(name, tmp_path) == NOT_MEASURED


def test_machines_have_tables_of_their_own(results: Path) -> None:
    save_rows(results / latency.ROWS, [replace(ROW, machine="another machine")])
    table = make_table("latency-cpu", results)
    assert table.count("| model |") == 2
    assert table.endswith("another machine, 2 threads; 2026-01-01; torch 9; commit abc.")


def test_report_fills_pages_and_draws_then_finds_nothing_to_do(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / attention.ROWS).unlink()  # one image is enough here
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(PAGE.format("startup"))
    (tmp_path / "docs" / "speed.md").write_text(PAGE.format("ratios-cpu") * 2)
    args = ["--root", str(tmp_path), "--results", str(results)]
    expected = [
        *("README.md: startup", "docs/speed.md: ratios-cpu", "docs/speed.md: ratios-cpu"),
        "pareto-cpu.svg",
    ]

    assert main([*args, "--check"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["stale"] == expected
    assert (tmp_path / "README.md").read_text() == PAGE.format("startup")
    assert main(args) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["written"] == expected
    assert main([*args, "--check"]) == 0

    text = (tmp_path / "README.md").read_text()
    assert text.startswith("Before\n<!-- benchmarks: startup -->\n| ms |")
    assert text.endswith("commit abc.\n<!-- end -->\nAfter\n")
    save_rows(results / startup.ROWS, [replace(ROW, what="total", input="warm", median=1.0)])
    assert main([*args, "--check"]) == 1


def test_images_have_the_same_bytes_again(results: Path, tmp_path: Path) -> None:
    for name in ("attention-cpu", "pareto-cpu"):
        rows = rows_of_plot(name, results)
        for copy in ("one.svg", "two.svg"):
            draw_plot(name, rows, tmp_path / copy)
        assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()

    assert b"published, not measured here" in (tmp_path / "one.svg").read_bytes()
    assert not is_stale(rows, tmp_path / "one.svg")
    assert is_stale(rows[:-1], tmp_path / "one.svg")


def test_plots_take_the_machine_measured_last(results: Path) -> None:
    later = replace(ROW, machine="newer", date="2026-02-01T00:00:00+00:00")
    save_rows(results / pareto.ROWS, [later])
    assert rows_of_plot("pareto-cpu", results) == [later]
    assert rows_of_plot("pareto-cuda", results) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PAGE.format("qqq"), "README.md: no table 'qqq'; expected one of latency-cpu"),
        ("<!-- benchmarks: startup -->\n", "the marker of startup has no '<!-- end -->' after"),
        (
            "<!-- benchmarks: startup -->\n" + PAGE.format("startup"),
            "the marker of startup has no '<!-- end -->' after",
        ),
    ],
    ids=["unknown", "no-end", "next-marker-before-the-end"],
)
def test_wrong_marker_is_one_line_and_code_2(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text(text)
    assert main(["--root", str(tmp_path), "--results", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err


def test_page_without_markers_stays_as_it_is(results: Path) -> None:
    assert fill_tables("text\n", results, "a page") == ("text\n", [])


def test_files_of_rows_in_the_repository_can_be_read() -> None:
    for name in (latency.ROWS, attention.ROWS, startup.ROWS, accuracy.ROWS, pareto.ROWS):
        keys = [row.key for row in read_rows(RESULTS / name, Row)]
        assert len(set(keys)) == len(keys)
    read_rows(RESULTS / latency.RATIOS, RatioRow)
    assert set(PLOTS) == {"attention-cpu", "pareto-cpu", "attention-cuda", "pareto-cuda"}
