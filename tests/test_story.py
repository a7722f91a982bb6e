"""Own photos, as docs/training.md has it: fine-tune, predict, export and predict with onnxruntime.

Every file on the way records the folder's own class names and the preprocessing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autoformer_zoo.cli.main import main as zoo
from tests.helpers.made_photos import COLORS, GREY, write_photos
from training.data.identity import read_classes
from training.finetune import main as finetune

CLASSES = [*COLORS, GREY]
pytestmark = pytest.mark.data


def predict(capsys: pytest.CaptureFixture[str], images: Path, *options: str) -> dict[Path, Any]:
    """Run the command; returns the classes of each image, the most probable first."""
    capsys.readouterr()
    assert zoo(["predict", str(images), *options, "--json"]) == 0
    return {Path(found["image"]): found["top"] for found in json.loads(capsys.readouterr().out)}


def test_own_photos_become_an_onnx_file_that_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, run = write_photos(tmp_path / "PHOTOS", train=12, val=4), tmp_path / "runs" / "mine"
    run.parent.mkdir()
    assert finetune([f"--data-dir={photos}", f"--out={run}", "--model=autoformer_nano"]) == 0
    weights, onnx = run / "weights.safetensors", tmp_path / "mine.onnx"
    found = predict(capsys, photos / "val", f"--checkpoint={weights}")
    right = [path.parts[-3] == top[0]["label"] for path, top in found.items()]
    assert len(right) == 4 * len(CLASSES)
    assert sum(right) >= len(right) - 1

    precision = ["--precision=int8-static", f"--calibration={photos / 'train'}"]
    assert zoo(["export", str(weights), str(onnx), *precision]) == 0
    exported = predict(capsys, photos / "val", "--backend=onnxruntime", f"--checkpoint={onnx}")
    assert exported.keys() == found.keys()
    for path, (best, *others) in exported.items():
        assert {answer["label"] for answer in (best, *others)} == set(CLASSES)
        original = {answer["label"]: answer["probability"] for answer in found[path]}
        assert best["probability"] == pytest.approx(original[best["label"]], abs=0.15)  # int8


def test_photos_without_val_have_held_out_images_of_their_own(tmp_path: Path) -> None:
    photos, run = write_photos(tmp_path / "PHOTOS", train=10), tmp_path / "mine"
    few = ["--stages=1:32", "--workers=0", "--no-plot"]
    assert finetune([f"--data-dir={photos}", f"--out={run}", *few]) == 0
    assert len(json.loads((run / "held_out.json").read_text())) == 2 * len(CLASSES)
    assert read_classes(run) == sorted(CLASSES)
