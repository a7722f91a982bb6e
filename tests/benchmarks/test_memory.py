"""Peak memory: of a call in this process, and of a model in its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from benchmarks.measure import memory
from benchmarks.measure.memory import MIB, can_measure, in_new_process, peak_of_call, torch_peak
from benchmarks.measure.rows import Setting

linux_only = pytest.mark.skipif(not can_measure("cpu"), reason="the peak is recorded on Linux only")


@linux_only
def test_peak_of_call_counts_what_is_freed_again_and_leaves_out_what_was_there() -> None:
    before = torch.ones(64 * MIB, dtype=torch.uint8)

    def fill() -> None:
        torch.ones(32 * MIB, dtype=torch.uint8)

    peaks = [peak_of_call(lambda: None), peak_of_call(fill)]

    assert None not in peaks
    assert peaks[0] < 8 * MIB < before.numel()
    assert 28 * MIB < peaks[1] < 60 * MIB


def test_peak_that_is_not_recorded_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "missing")
    assert peak_of_call(lambda: pytest.fail("it was called")) is None


@pytest.mark.slow  # fresh processes import torch and timm
def test_new_process_returns_raises_and_may_die() -> None:
    assert in_new_process(os.getpid) != os.getpid()
    with pytest.raises(FileNotFoundError):
        in_new_process(os.stat, "/no such file")
    with pytest.raises(OSError, match="the process of abort died; there may be too little memory"):
        in_new_process(os.abort)


@pytest.mark.slow  # a fresh process imports torch and timm
@linux_only
def test_peak_of_model_holds_its_weights() -> None:
    setting = Setting("fp32", 1, 1)
    peak = in_new_process(torch_peak, "autoformer_tiny", 224, setting, "cpu")
    assert peak is not None
    assert peak > 5_867_944 * 4
