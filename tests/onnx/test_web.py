"""web.py: a folder whose files have the names and the contents that clients look for."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from autoformer_zoo.models.factory import create_model
from autoformer_zoo.onnx import web
from autoformer_zoo.onnx.classifier import OnnxClassifier
from autoformer_zoo.onnx.web import export_web
from tests.helpers.onnx_models import SUBNET, reuse_exports, small_model

NODE = Path(__file__).parents[1] / "helpers" / "node_modules" / "@huggingface" / "transformers"


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    model: Any = create_model("autoformer_nano", subnet=SUBNET)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.3 if "rel_pos" in name else 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("web") / "models" / "nano"
    with pytest.MonkeyPatch.context() as patch:
        reuse_exports(patch)
        reports = export_web(model, path)
    assert [report.precision for report in reports] == ["fp32", "int8-dynamic"]
    return path


def test_files_are_those_that_clients_load(folder: Path) -> None:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    assert files == [
        "config.json",
        "onnx/model.onnx",
        "onnx/model_quantized.onnx",
        "preprocessor_config.json",
    ]
    for name in ("model.onnx", "model_quantized.onnx"):
        graph = onnx.load(folder / "onnx" / name).graph
        assert [value.name for value in graph.input] == ["pixel_values"]
        assert [value.name for value in graph.output] == ["logits"]


def test_config_names_the_classes_and_the_subnet(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "vit"
    assert config["id2label"]["3"] == "cat"
    assert config["label2id"]["cat"] == 3
    assert config["autoformer_zoo"]["subnet"] == SUBNET.to_dict()


def test_preprocessing_is_the_models(folder: Path) -> None:
    config = json.loads((folder / "preprocessor_config.json").read_text())
    metadata = OnnxClassifier(folder / "onnx" / "model.onnx").metadata
    assert config["crop_size"] == {"height": 32, "width": 32}
    assert config["size"] == {"shortest_edge": math.floor(32 / metadata.crop_pct)}
    assert config["resample"] == Image.Resampling.LANCZOS
    image = np.full((32, 32, 3), 100, np.uint8)
    prepared = OnnxClassifier(folder / "onnx" / "model.onnx").prepare(Image.fromarray(image))
    scaled = image * config["rescale_factor"]
    expected = (scaled - config["image_mean"]) / config["image_std"]
    assert np.abs(prepared - expected.transpose(2, 0, 1)).max() < 1e-6


def test_what_the_clients_cannot_prepare_is_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the input is 16 x 24 .*needs a square"):
        export_web(small_model(), tmp_path / "web")
    bare = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="no pretrained_cfg"):
        export_web(bare, tmp_path / "web")
    assert not (tmp_path / "web").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; expected the name of a folder"):
        export_web(model, tmp_path / "file")


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"opset": 99}, "opset is 99; expected 18 to 22"),
        ({"img_size": 33}, "img_size is 33; expected positive multiples"),
        ({"precision": "int8-dynamic"}, "the second file fails"),
        ({"in_chans": 1}, "takes 1 channels; a folder for the web needs 3, RGB"),
    ],
)
def test_failure_leaves_the_folder_as_it_was(
    model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: Any,
    text: str,
    exists: bool,
) -> None:
    def export(*arguments: Any, precision: Any, **others: Any) -> Any:
        if precision == options.get("precision"):
            raise ValueError(text)
        return export_onnx(*arguments, precision=precision, **others)

    export_onnx = web.export_onnx
    monkeypatch.setattr(web, "export_onnx", export)
    reuse_exports(monkeypatch)
    out = tmp_path / "models" / "web"
    if exists:
        (out / "onnx").mkdir(parents=True)
        (out / "onnx" / "model.onnx").write_text("before")
    before = sorted(tmp_path.rglob("*"))
    if "in_chans" in options:
        model = create_model("autoformer_nano", subnet=SUBNET, in_chans=1)
    with pytest.raises(ValueError, match=text):
        export_web(model, out, **{k: v for k, v in options.items() if k in ("opset", "img_size")})
    assert sorted(tmp_path.rglob("*")) == before
    assert not exists or (out / "onnx" / "model.onnx").read_text() == "before"


@pytest.mark.skipif(
    shutil.which("node") is None or not NODE.exists(),
    reason="needs node, and in tests/helpers: npm install @huggingface/transformers",
)
def test_transformers_js_gives_the_same_answer(model: Any, folder: Path, tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), "uint8"))
    image.save(tmp_path / "image.png")
    script = NODE.parents[2] / "classify.mjs"
    for dtype, name in (("fp32", "model.onnx"), ("q8", "model_quantized.onnx")):
        command = ["node", str(script), str(folder.parent), folder.name, dtype, "image.png"]
        output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        found = {each["label"]: each["score"] for each in json.loads(output.stdout)}
        expected = OnnxClassifier(folder / "onnx" / name).predict(image, top_k=10)[0]
        for prediction in expected:
            assert found[prediction.label] == pytest.approx(prediction.probability, abs=1e-3)
