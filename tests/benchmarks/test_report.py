"""Tables and plots: made from rows alone, stale ones named, pages otherwise untouched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.measure.results import RESULTS, save_rows
from benchmarks.measure.rows import Row
from benchmarks.report.__main__ import main
from benchmarks.report.plots import draw_plot, is_stale, rows_of_plot
from benchmarks.report.tables import NOT_MEASURED, TABLES, make_table

ROW = Row(
    *("latency", "a_model", "eager", "fp32", 8, 2, "224x224", "cpu", "a machine, 2 CPUs"),
    *("torch 9", "abc", "2026-01-01T00:00:00+00:00", 123.4, 99.9, 0.123, 50, "ms"),
)
RATIO = replace(ROW, baseline="other", value=1.5, low=1.25, high=1.75, unit="")
ONNX = {"backend": "onnxruntime"}
TINY, DEIT_TINY, BASE = "autoformer_tiny", "deit_tiny_patch16_224", "autoformer_base"
PAGE = "Before\n<!-- benchmarks: {} -->\nold\n<!-- end -->\nAfter\n"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder of rows with something for every table of the CPU."""
    folder = tmp_path / "results"
    memory = replace(ROW, what="peak_memory", value=77.0, unit="MiB")
    base, tiny, deit = (replace(ROW, model=name) for name in (BASE, TINY, DEIT_TINY))
    ratios = [
        replace(RATIO, **ONNX),
        replace(base, baseline="deit_base_patch16_224", value=0.5, low=0.4, high=0.6),
        replace(tiny, baseline=DEIT_TINY, value=1.1, low=1.0, high=1.2),
        replace(tiny, baseline=f"{TINY}@explicit", value=0.1),
        replace(tiny, baseline=DEIT_TINY, precision="bf16"),
    ]
    single = {"model": TINY, "batch": 1, "backend": "openvino"}
    ratios.append(replace(RATIO, **single, baseline=DEIT_TINY, value=1.21))
    latencies = [ROW, memory, replace(ROW, **ONNX, value=50.0), base, tiny, replace(ROW, **single)]
    save_rows(folder, "latency", [*latencies, replace(deit, value=40.0), *ratios])
    grid = replace(ROW, input="7x7 grid, 3 heads", value=2.0)
    forms = [replace(grid, model=form) for form in ("plain", "explicit", "augmented")]
    larger = [replace(row, input="14x14 grid, 3 heads", value=8.0) for row in forms]
    skipped = replace(larger[1], what="peak_memory", value=9e3, repeats=0, note="estimated")
    save_rows(folder, "attention", [*forms, larger[0], larger[2], skipped])
    total = replace(ROW, what="total", input="warm", value=900.0)
    save_rows(folder, "startup", [total, replace(total, what="create_model", value=70.0)])
    top1 = replace(ROW, what="top1", model="autoformer_nano", value=64.33, repeats=10_000)
    save_rows(folder, "accuracy", [top1, replace(top1, model="another", value=1.0)])
    save_rows(folder, "pareto", [replace(tiny, value=30.0), replace(deit, value=20.0)])
    return folder


def test_tables_hold_the_rows_and_state_where_they_come_from(results: Path) -> None:
    header, _, line, other, *_, caption = make_table("latency-cpu", results).splitlines()
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
        ("engines-cpu", "| openvino | fp32 | 123 (1.21) | - | - |"),
        ("attention-cpu", "| 14x14 grid, 3 heads | 8.00 | - | - | 8.00 | - | (9000) | - | - |"),
        ("startup", "| `a_model` | warm | 70.0 | 900 |"),
        ("accuracy-nano", "| 10000 | 64.33 | - | - |"),
        ("pareto-cpu", f"| `{DEIT_TINY}` | 8 | 20.0 | 72.2 |\n| `{TINY}` | 8 | 30.0 | 75.3 |"),
    ],
)
def test_every_table_shows_its_figures(name: str, text: str, results: Path) -> None:
    assert text in make_table(name, results)


def test_speed_table_has_pairs_of_a_size_alone_in_their_order(results: Path) -> None:
    lines = make_table("speed-cpu", results).splitlines()[2:-2]
    assert lines == [
        f"| `{TINY}` | 8 | 123 | 40.0 | 1.10 (1.00 to 1.20) |",
        f"| `{BASE}` | 8 | 123 | - | 0.50 (0.40 to 0.60) |",
    ]
    assert len(make_table("speed-cpu", RESULTS).splitlines()) == 2 + 6 + 2


def test_nano_table_leaves_others_out(results: Path) -> None:
    assert "another" in make_table("accuracy", results)
    assert "another" not in make_table("accuracy-nano", results)


OF_THE_PACKAGE = {"predictor", "predictor-published", "slices"}  # made from its own files, not rows


@pytest.mark.parametrize("name", sorted(TABLES.keys() - OF_THE_PACKAGE))
def test_table_without_rows_says_so(name: str, tmp_path: Path) -> None:
    assert make_table(name, tmp_path) == NOT_MEASURED


def test_machines_have_tables_of_their_own(results: Path) -> None:
    save_rows(results, "latency", [replace(ROW, machine="another machine")])
    table = make_table("latency-cpu", results)
    assert table.count("| model |") == 2
    assert table.endswith("another machine, 2 threads; 2026-01-01; torch 9; commit abc.")


def test_report_fills_pages_and_draws_then_finds_nothing_to_do(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "attention.csv").unlink()  # one plot is enough here
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
    save_rows(results, "startup", [replace(ROW, what="total", input="warm", value=1.0)])
    assert main([*args, "--check"]) == 1


@pytest.mark.parametrize("name", ["attention-cpu", "pareto-cpu"])
def test_plot_has_the_same_bytes_again(name: str, results: Path, tmp_path: Path) -> None:
    rows = rows_of_plot(name, results)
    files = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for file in files:
        draw_plot(name, rows, file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert (b"published, not measured here" in files[0].read_bytes()) == (name == "pareto-cpu")
    assert not is_stale(rows, files[0])
    assert is_stale(rows[:-1], files[0])


def test_plots_take_the_machine_measured_last(results: Path) -> None:
    later = replace(ROW, machine="newer", date="2026-02-01T00:00:00+00:00")
    save_rows(results, "pareto", [later])
    assert rows_of_plot("pareto-cpu", results) == [later]
    assert rows_of_plot("pareto-cuda", results) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PAGE.format("qqq"), "README.md: no table 'qqq'; expected one of latency-cpu"),
        ("<!-- benchmarks: startup -->\n", "the marker of startup has no '<!-- end -->' after"),
        (
            "<!-- benchmarks: startup -->\n" + PAGE.format("accuracy"),
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
