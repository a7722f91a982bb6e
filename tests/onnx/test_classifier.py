"""onnx_classifier.py: predict's answers without torch, and clear refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from autoformer_zoo.classify.predict import make_transform, predict
from autoformer_zoo.onnx.classifier import OnnxClassifier, prepare, resized_size
from autoformer_zoo.onnx.export import export_onnx
from autoformer_zoo.onnx.metadata import OnnxMetadata
from tests.helpers.onnx_models import made_images, reuse_exports, small_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    with pytest.MonkeyPatch.context() as patch:
        reuse_exports(patch)
        export_onnx(small_model(), path)
        export_onnx(small_model(), path.with_name("images.onnx"), preprocess=True)
    return path


@pytest.mark.parametrize("name", ["net.onnx", "images.onnx"])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_answers_are_those_of_predict(file: Path, name: str, batch_size: int) -> None:
    images = [*made_images(4), *made_images(1), *made_images(1)]
    expected = predict(small_model(), images, top_k=3)
    found = OnnxClassifier(file.with_name(name), threads=1).predict(images, 3, batch_size)
    tolerance = 1e-5 if name == "net.onnx" else 1e-2
    assert [a[0].image for a in found] == [a[0].image for a in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[0].label == theirs[0].label
        assert [a.probability for a in ours] == pytest.approx(
            [a.probability for a in theirs], abs=tolerance
        )


@pytest.mark.parametrize("size", [(224, 224), (32, 48), (48, 32), (31, 31)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.9])
@pytest.mark.parametrize("filter_name", ["bicubic", "bilinear"])
def test_prepared_image_is_timms_bit_by_bit(
    size: tuple[int, int], crop_pct: float, filter_name: str
) -> None:
    model = torch.nn.Linear(1, 1)
    model.num_classes = 1000
    model.pretrained_cfg = {
        "input_size": (3, *size),
        "crop_pct": crop_pct,
        "interpolation": filter_name,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "num_classes": 1000,
    }
    cfg = model.pretrained_cfg
    metadata = OnnxMetadata(
        size, 1000, cfg["mean"], cfg["std"], filter_name, crop_pct, None, "fp32", False, False
    )
    transform = make_transform(model)
    for image in made_images(6):
        assert np.array_equal(prepare(image, metadata), transform(image).numpy())


def test_resized_size_cuts_as_torchvision_does() -> None:
    assert resized_size((100, 333), (224, 224), 0.875) == (256, 852)
    assert resized_size((333, 100), (224, 224), 0.875) == (852, 256)
    assert resized_size((100, 100), (32, 64), 1.0) == (64, 64)


def test_batch_of_another_shape_or_type_is_refused(file: Path) -> None:
    classifier = OnnxClassifier(file)
    for batch in (
        np.zeros((1, 3, 16, 16), np.float32),
        np.zeros((3, 16, 24), np.float32),
        np.zeros((1, 3, 16, 24), np.float64),
        np.zeros((0, 3, 16, 24), np.float32),
    ):
        with pytest.raises(ValueError, match=r"expected float32 of shape \(.*, 3, 16, 24\)"):
            classifier.run(batch)


def test_provider_that_is_not_installed_is_refused(file: Path) -> None:
    with pytest.raises(
        ValueError, match=r"NoProvider is not installed; this onnxruntime has .*CPU"
    ):
        OnnxClassifier(file, providers=["NoProvider"])


@pytest.mark.parametrize("threads", [0, 1.5])
def test_number_of_threads_is_checked(file: Path, threads: Any) -> None:
    with pytest.raises(ValueError, match=r"threads is .*; expected a positive whole number"):
        OnnxClassifier(file, threads=threads)


@pytest.mark.parametrize("argument", ["top_k", "batch_size"])
def test_numbers_are_checked(file: Path, argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} is 0; expected a positive"):
        OnnxClassifier(file).predict([], **{argument: 0})


def test_damaged_and_missing_files_are_refused(file: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(
        ValueError, match=r"damaged\.onnx cannot be run: .*; export it anew"
    ) as found:
        OnnxClassifier(damaged)
    assert "\n" not in str(found.value)
    with pytest.raises(FileNotFoundError, match=r"no\.onnx is no file; expected one that export_"):
        OnnxClassifier(tmp_path / "no.onnx")


@pytest.fixture
def foreign(file: Path, tmp_path: Path) -> Path:
    """The same network without our metadata."""
    proto = onnx.load(file)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    return tmp_path / "foreign.onnx"


def test_file_of_another_program_needs_to_be_described(file: Path, foreign: Path) -> None:
    with pytest.raises(ValueError, match="no metadata of autoformer_zoo; give mean=, std= and lab"):
        OnnxClassifier(foreign)
    known = OnnxClassifier(file)
    described = OnnxClassifier(
        foreign,
        mean=known.metadata.mean,
        std=known.metadata.std,
        labels=known.labels,
        crop_pct=1.0,
    )
    images = made_images(2)
    assert described.predict(images) == known.predict(images)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"labels": ["a"]}, "has 10 outputs, and 1 labels were given"),
        ({"interpolation": "magic"}, "interpolation is 'magic'; expected one of nearest, box"),
    ],
)
def test_wrong_descriptions_are_refused(foreign: Path, options: Any, text: str) -> None:
    described = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "labels": list("abcdefghij"), **options}
    with pytest.raises(ValueError, match=text):
        OnnxClassifier(foreign, **described)


WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("torch", "timm", "torchvision", "safetensors", "onnx"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
import importlib.util
find, absent = importlib.util.find_spec, ("torch", "timm")
importlib.util.find_spec = lambda name, *rest: None if name in absent else find(name)
import autoformer_zoo
from autoformer_zoo import OnnxClassifier
from autoformer_zoo.onnx.classifier import OnnxClassifier
print(OnnxClassifier({file!r}).predict({image!r}, top_k=1)[0][0].label)
try:
    autoformer_zoo.create_model
except ImportError as error:
    print(error)
"""


def test_classifier_needs_neither_torch_nor_timm(file: Path, tmp_path: Path) -> None:
    image = made_images(1)[0]
    image.save(path := tmp_path / "image.png")
    code = WITHOUT_TORCH.format(file=str(file), image=str(path))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    label, refusal = done.stdout.splitlines()
    assert label == predict(small_model(), image, top_k=1)[0][0].label
    assert refusal.startswith("autoformer_zoo.create_model needs t")
    assert "which is not installed: pip install" in refusal


def test_example_prints_the_answers(file: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(image := tmp_path / "red.png")
    script = ROOT / "examples" / "classify_onnx.py"
    done = subprocess.run(
        [sys.executable, str(script), str(file), str(image)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(script.read_text().splitlines()) <= 30
    assert done.stdout.startswith(f"{image}\n")
    assert done.stdout.count("%") == 5
