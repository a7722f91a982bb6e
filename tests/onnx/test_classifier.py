"""classifier.py: predict's answers without torch, and clear refusals."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from autoformer_zoo.classify.predict import make_transform, predict
from autoformer_zoo.onnx.classifier import OnnxClassifier, prepare
from autoformer_zoo.onnx.export import export_onnx
from autoformer_zoo.onnx.metadata import PREFIX, OnnxMetadata
from tests.helpers.onnx_models import IN_ONE_PROCESS, made_images, reuse_exports, small_model

ROOT = Path(__file__).parents[2]
pytestmark = IN_ONE_PROCESS


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
    images = [*made_images(4), *made_images(1), *made_images(1), Image.new("RGB", (8000, 1))]
    expected = predict(small_model(), images, top_k=3)
    found = OnnxClassifier(file.with_name(name), threads=1).predict(images, 3, batch_size)
    tolerance = 1e-5 if name == "net.onnx" else 1e-2
    assert [a[0].image for a in found] == [a[0].image for a in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[0].label == theirs[0].label
        assert [a.probability for a in ours] == pytest.approx(
            [a.probability for a in theirs], abs=tolerance
        )


def test_input_may_have_another_name(file: Path, tmp_path: Path) -> None:
    model = onnx.load(file)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = "images" if name == "pixel_values" else name  # as in version 0.1
    model.graph.input[0].name = "images"
    onnx.save(model, tmp_path / "old.onnx")
    image = made_images(1)
    new, old = (OnnxClassifier(path).predict(image) for path in (file, tmp_path / "old.onnx"))
    assert new == old


def described(
    size: tuple[int, int], crop_pct: float, filter_name: str, crop_mode: str = "center"
) -> tuple[Any, OnnxMetadata]:
    """Return a model and a file's metadata with the same preparation of images."""
    model = torch.nn.Linear(1, 1)
    model.num_classes = 1000
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    model.pretrained_cfg = {
        "input_size": (3, *size),
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "interpolation": filter_name,
        "mean": mean,
        "std": std,
        "num_classes": 1000,
    }
    sizes = (size, 1000, mean, std, filter_name, crop_pct)
    return model, OnnxMetadata(*sizes, None, "fp32", False, False, crop_mode=crop_mode)


@pytest.mark.parametrize("size", [(224, 224), (32, 48), (48, 32), (31, 31)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.9])
@pytest.mark.parametrize("filter_name", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_prepared_image_is_timms_bit_by_bit(
    size: tuple[int, int], crop_pct: float, filter_name: str, crop_mode: str
) -> None:
    model, metadata = described(size, crop_pct, filter_name, crop_mode)
    transform = make_transform(model)
    for image in made_images(4):
        assert np.array_equal(prepare(image, metadata), transform(image).numpy())


@pytest.mark.parametrize(("crop_mode", "width"), [("squash", 8000), ("center", 64)])
def test_file_that_prepares_images_itself_gets_what_predict_sees(
    file: Path, tmp_path: Path, crop_mode: str, width: int
) -> None:
    path = tmp_path / "net.onnx"
    save_described(file.with_name("images.onnx"), path, {"crop_mode": crop_mode})
    assert OnnxClassifier(path).prepare(Image.new("RGB", (8000, 1))).shape == (1, width, 3)


OTHER_BATCHES = [
    np.zeros((1, 3, 16, 16), np.float32),
    np.zeros((3, 16, 24), np.float32),
    np.zeros((1, 3, 16, 24), np.float64),
]


@pytest.mark.parametrize("batch", OTHER_BATCHES, ids=lambda batch: f"{batch.shape} {batch.dtype}")
def test_batch_of_another_shape_or_type_is_refused(file: Path, batch: Any) -> None:
    with pytest.raises(ValueError, match=r"net\.onnx cannot be run: .*INVALID_ARGUMENT"):
        OnnxClassifier(file).run(batch)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda f: OnnxClassifier(f, ["NoProvider"]), "NoProvider is not installed; this onnxrunt"),
        (lambda f: OnnxClassifier(f, "CPU"), "providers is 'CPU'; expected a list of names"),
        (lambda f: OnnxClassifier(f, threads=1.5), "threads is 1.5; expected a positive whole num"),
        (lambda f: OnnxClassifier(f).predict([], top_k=0), "top_k is 0; expected a positive"),
        (lambda f: OnnxClassifier(f).predict([], batch_size=0), "batch_size is 0; expected a posi"),
        (lambda f: OnnxClassifier(f.with_name("no.onnx")), r"no\.onnx is not a file; expected one"),
    ],
)
def test_wrong_arguments_are_refused(file: Path, call: Any, text: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        call(file)


def test_damaged_files_are_refused_at_one_door(file: Path, tmp_path: Path) -> None:
    whole, image = file.read_bytes(), made_images(1)[0]
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.onnx"
    for i in range(60):
        content = bytearray(whole)
        if i % 2:
            content = content[: rng.integers(len(content))]
        for place in rng.integers(0, len(content), 20):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        with contextlib.suppress(ValueError):  # any other exception is a fault
            OnnxClassifier(path).predict(image)


def save_described(file: Path, out: Path, changed: dict[str, Any]) -> None:
    """Copy a file, with other values in its metadata."""
    proto = onnx.load(file)
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    properties |= {PREFIX + key: json.dumps(value) for key, value in changed.items()}
    onnx.helper.set_model_props(proto, properties)
    onnx.save(proto, out)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"mean": [0.5]}, "has damaged metadata"),
        ({"std": [0.1, 0, 0.1]}, "has damaged metadata"),
        ({"crop_pct": 1e-9}, "has damaged metadata"),
        ({"crop_pct": None}, "has damaged metadata"),
        ({"crop_mode": "border"}, "has damaged metadata"),
        ({"input_size": [9, 9]}, "takes tensor.float. of shape"),
        ({"labels": ["a"]}, "has 10 outputs, and 1 labels"),
        ({"labels": 3}, "has damaged metadata"),
        ({"mean": None}, "does not record how images are normalised"),
    ],
)
def test_damaged_metadata_are_refused(
    file: Path, tmp_path: Path, changed: dict[str, Any], text: str
) -> None:
    save_described(file, tmp_path / "damaged.onnx", changed)
    with pytest.raises(ValueError, match=rf"damaged\.onnx .*({text})"):
        OnnxClassifier(tmp_path / "damaged.onnx")


def test_file_of_another_program_needs_to_be_described(file: Path, tmp_path: Path) -> None:
    proto, foreign = onnx.load(file), tmp_path / "foreign.onnx"
    del proto.metadata_props[:]
    onnx.save(proto, foreign)
    with pytest.raises(ValueError, match=r"foreign\.onnx has no metadata of autoformer_zoo"):
        OnnxClassifier(foreign)
    known, images = OnnxClassifier(file), made_images(2)
    options = {"mean": known.metadata.mean, "std": known.metadata.std, "labels": known.labels}
    options["crop_pct"] = 1.0
    assert OnnxClassifier(foreign, **options).predict(images) == known.predict(images)
    raw = OnnxClassifier(foreign, **options, softmax=True)  # whatever the outputs are
    logits = known.run(np.stack([known.prepare(image) for image in images]))
    assert [p[0].probability for p in raw.predict(images)] == logits.max(1).tolist()
    for wrong, text in (
        ({"labels": ["a"]}, "has 10 outputs, and 1 labels were given"),
        ({"labels": None}, "has no metadata of autoformer_zoo: give labels"),
        ({"interpolation": "magic"}, "interpolation is 'magic'; expected one of nearest, box"),
        ({"mean": 0.5}, "is described wrongly, expected 3 numbers as mean, .*not iterable"),
        ({"std": (0, 0, 0)}, r"is described wrongly, expected .*, 3 above 0 as std, .*\[0 0 0\]"),
        ({"crop_pct": 0}, "is described wrongly, expected .* crop_pct from 0.1 to 10: .*0"),
    ):
        with pytest.raises(ValueError, match=text):
            OnnxClassifier(foreign, **{**options, **wrong})


def test_what_a_file_records_is_not_overridden(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="records how it is to be used: leave out crop_pct, softm"):
        OnnxClassifier(file, crop_pct=1.0, softmax=True)
    unknown, known = tmp_path / "unknown.onnx", OnnxClassifier(file)
    save_described(file, unknown, {"mean": None, "std": None, "labels": None, "softmax": True})
    options = {"mean": known.metadata.mean, "std": known.metadata.std, "labels": known.labels}
    assert OnnxClassifier(unknown, **options).metadata == replace(known.metadata, softmax=True)


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
