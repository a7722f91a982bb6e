"""The startup command: which processes run, and what becomes of their phases."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.footprint.startup import StartupOptions, main, measure_startup
from benchmarks.measure import rows as rows_module
from benchmarks.measure.results import read_rows

NANO = StartupOptions(models=("autoformer_nano", "test_vit"), supernet=("nano",), rounds=3)


def test_rows_are_medians_of_each_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        assert Path(command[-1]).is_file()  # the weights
        phases = {"create_model": float(len(seen)), "total": 7.0}
        return subprocess.CompletedProcess(command, 0, f"noise\n{json.dumps(phases)}\n", "")

    monkeypatch.setattr(rows_module, "current_commit", lambda: "abc")  # asks git, a process too
    monkeypatch.setattr(subprocess, "run", run)
    (rows,) = measure_startup(NANO)

    assert len(seen) == 3 * 2 * 3  # kinds, states, rounds
    assert {tuple(command[-3:-1]) for command in seen} == {
        ("zoo", "autoformer_nano"),
        ("timm", "test_vit"),
        ("extract", "nano"),
    }
    cold = [command for command in seen if "-X" in command]
    assert len(cold) == 9
    assert {row.model for row in rows} == {"autoformer_nano", "test_vit", "supernet-nano"}
    assert {(row.what, row.input) for row in rows} == {
        (phase, state) for phase in ("create_model", "total") for state in ("warm", "cold")
    }
    assert {row.repeats for row in rows} == {3}


def test_failed_process_is_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nImportError: no torch\n")

    monkeypatch.setattr(subprocess, "run", run)

    assert main(["--models", "test_vit", "--supernet", "nano"]) == 2
    assert "failed: ImportError: no torch\n" in capsys.readouterr().err


@pytest.mark.slow  # fresh processes import torch and timm
def test_command_times_real_processes(tmp_path: Path) -> None:
    assert main(["--quick", "--threads", "1", "--save", "--results", str(tmp_path)]) == 0

    rows = read_rows(tmp_path / "startup.csv")
    assert {row.what for row in rows if row.model == "test_vit"} == {
        *("import_torch", "import_timm", "create_model"),
        *("first_prediction", "later_prediction", "total"),
    }
    assert {row.what for row in rows if row.model == "supernet-nano"} >= {"extract_subnet"}
    assert min(row.value for row in rows) > 0
