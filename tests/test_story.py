"""Own photos, as docs/training.md has it: fine-tune, predict, export and predict with onnxruntime.

Every file on the way records the folder's own class names and the preprocessing.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoformer_zoo.cli.main import main as zoo
from tests.helpers.made_photos import COLORS, GREY, write_photos
from training.finetune import main as finetune

CLASSES = [*COLORS, GREY]  # in natural order
pytestmark = pytest.mark.data


def predict(capsys: pytest.CaptureFixture[str], images: Path, *options: str) -> list[list[dict]]:
    """Run the command; returns each image's answers."""
    capsys.readouterr()
    assert zoo(["predict", str(images), *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("splits", [{"train": 24, "val": 8}, {"train": 30}], ids=["val", "no val"])
def test_own_photos_become_an_onnx_file_that_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], splits: dict[str, int]
) -> None:
    photos, run = write_photos(tmp_path / "PHOTOS", **splits), tmp_path / "runs" / "mine"
    run.parent.mkdir()
    assert finetune([f"--data-dir={photos}", f"--out={run}", "--model=autoformer_nano"]) == 0
    assert json.loads((run / "classes.json").read_text()) == sorted(CLASSES)
    assert (run / "held_out.json").exists() == ("val" not in splits)

    weights, onnx = run / "weights.safetensors", tmp_path / "mine.onnx"
    answers = predict(capsys, photos / next(reversed(splits)), f"--checkpoint={weights}")
    right = [best["label"] == Path(best["image"]).parts[-3] for best, *_ in answers]
    assert len(right) == len(CLASSES) * list(splits.values())[-1]
    assert sum(right) >= 0.95 * len(right)

    precision = ["--precision=int8-static", f"--calibration={photos / 'train'}"]
    assert zoo(["export", str(weights), str(onnx), *precision]) == 0
    image = next((photos / "train" / "red").rglob("*.jpg"))
    (exported,) = predict(capsys, image, "--backend=onnxruntime", f"--checkpoint={onnx}")
    (original,) = predict(capsys, image, f"--checkpoint={weights}")
    assert {answer["label"] for answer in exported} == set(CLASSES)
    assert exported[0]["label"] == original[0]["label"] == "red"
    assert exported[0]["probability"] == pytest.approx(original[0]["probability"], abs=0.1)
