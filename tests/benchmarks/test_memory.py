"""Peak memory: of a call in this process, and of a model in its own."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.measure import memory
from benchmarks.measure.memory import MIB, can_measure, peak_of_call, peak_of_model

linux_only = pytest.mark.skipif(not can_measure("cpu"), reason="the peak is known on Linux only")


@linux_only
def test_peak_of_call_counts_what_is_freed_again() -> None:
    def fill() -> None:
        torch.ones(64 * MIB, dtype=torch.uint8)

    peak = peak_of_call(fill)

    assert peak is not None
    assert 60 * MIB < peak < 90 * MIB


@linux_only
def test_peak_of_call_leaves_out_what_was_there() -> None:
    held = torch.ones(64 * MIB, dtype=torch.uint8)
    peak = peak_of_call(lambda: None)
    assert peak is not None
    assert peak < 8 * MIB < held.numel()


def test_unknown_peak_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CLEAR", Path("/nonexistent"))

    assert peak_of_call(lambda: None) is None
    assert peak_of_model("test_vit", (3, 160, 160), 1, 1) is None


def test_failed_process_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nMemoryError: full\n")

    monkeypatch.setattr(memory, "can_measure", lambda _: True)
    monkeypatch.setattr(subprocess, "run", run)

    with pytest.raises(OSError, match="measuring the memory of test_vit failed: MemoryError: full"):
        peak_of_model("test_vit", (3, 160, 160), 1, 1)


@pytest.mark.slow  # a fresh process imports torch and timm
@linux_only
def test_peak_of_model_holds_its_weights() -> None:
    peak = peak_of_model("autoformer_tiny", (3, 224, 224), 1, 1)
    assert peak is not None
    assert peak > 5_867_944 * 4 / MIB
