"""examples/tour.sh, the whole method at smoke size on CIFAR-10."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.data
def test_tour_ends_with_a_prediction_of_the_exported_file(cifar10: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "tour.sh"), str(cifar10), str(tmp_path / "tour")],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *_, image, best = [line for line in done.stdout.splitlines() if line][:-4]
    assert image == "docs/cat.jpg"
    assert re.match(r"\s*\d+\.\d+ ?%\s+\w+", best)
    assert {path.name for path in (tmp_path / "tour").iterdir()} >= {
        "train",
        "search",
        "subnet.safetensors",
        "subnet.onnx",
    }
