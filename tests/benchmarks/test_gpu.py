"""One call for a GPU: order and limits of the steps."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import GPU_TESTS, GpuOptions, Step, main, plan, run_steps
from benchmarks.measure.results import RESULTS

SLEEP = ("timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)")


def test_steps_never_outlast_the_limit_and_leave_a_summary(tmp_path: Path) -> None:
    steps = [Step("fails", ("no_such_module",)), Step("sleeps", SLEEP), Step("late", SLEEP, 0.1)]
    start = time.monotonic()
    outcomes = run_steps(steps, tmp_path, seconds=8)

    assert time.monotonic() - start < 20  # far below the minutes that the steps would take
    assert [outcome.code for outcome in outcomes] == [1, None, None]
    assert [entry["name"] for entry in json.loads((tmp_path / "summary.json").read_text())] == [
        "fails",
        "sleeps",
        "late",
    ]
    assert "no_such_module" in (tmp_path / "01-fails.log").read_text()


def test_tests_come_first_and_what_compiles_for_minutes_last() -> None:
    names = [step.name.split()[0] for step in plan(GpuOptions(out=Path("out")))]
    measured = ["tests", *["eager"] * 3, "attention", "training"]
    assert names == [*measured, *["graphs"] * 3, *["compile"] * 3]


def test_files_of_the_first_step_are_all_that_have_tests_marked_gpu() -> None:
    root = Path(__file__).parents[2]
    marked = {
        path.relative_to(root).as_posix()
        for path in (root / "tests").rglob("test_*.py")
        if re.search(r"^(@pytest|pytestmark = pytest)\.mark\.gpu$", path.read_text(), re.MULTILINE)
    }
    assert marked == set(GPU_TESTS)


@pytest.mark.parametrize(
    ("given", "folder"),
    [({}, RESULTS), ({"device": "cpu"}, Path("out")), ({"results": Path("mine")}, Path("mine"))],
    ids=["cuda", "cpu", "given"],
)
def test_rehearsal_leaves_the_published_rows_alone(given: dict[str, Any], folder: Path) -> None:
    _, *measuring = plan(GpuOptions(out=Path("out"), **given))
    for step in measuring:
        place = step.arguments.index("--results") + 1
        assert step.arguments[place] == str(folder)


@pytest.mark.slow
def test_rehearsal_on_the_cpu_runs_every_step(tmp_path: Path) -> None:
    flags = ["--out", str(tmp_path), "--device", "cpu", "--quick"]
    assert main([*flags, "--minutes", "8"]) == 0
    saved = {path.name for path in tmp_path.glob("*.csv")}
    assert {"latency.csv", "attention.csv", "training.csv"} <= saved
