"""The command that measures latencies for a search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autoformer_zoo.specialization.latency import measure
from autoformer_zoo.specialization.latency.profile import LatencyProfile
from tests.helpers.made_training import MINI
from training.search.costs import main


def test_command_measures_a_profile_of_another_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOFORMER_ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measure, "MOST", 4)
    monkeypatch.setattr(measure, "MAX_NOISE_PERCENT", float("inf"))
    out = tmp_path / "profile.json"
    common = ["--space", MINI.to_json(), "--seconds", "0.1", "--out", str(out)]
    assert main([*common, "--img-size", "17"]) == 2
    assert "img_size is 17; expected a multiple of 4" in capsys.readouterr().err
    assert not out.exists()
    assert main([*common, "--img-size", "8"]) == 0
    profile = LatencyProfile.from_json(out.read_text())
    assert profile.img_size == 8
    assert profile.cost(replace(MINI, img_size=8)).value(MINI.largest) > 0
