"""The smoke preset on real images, without anything made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.reproduce.config import PRESETS
from training.reproduce.phases import Reproduction


@pytest.mark.data
@pytest.mark.slow
def test_smoke_preset_reports_on_real_images(tmp_path: Path, cifar10: Path) -> None:
    whole = Reproduction(PRESETS["smoke"], cifar10, tmp_path / "out", progress=False)
    whole.run("train", "report")
    text = (tmp_path / "out" / "report.md").read_text()
    assert all(f"## ({letter})" in text for letter in ("a2", "e4", "f", "g", "i"))
