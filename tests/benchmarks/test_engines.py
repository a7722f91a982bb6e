"""ONNX files in other engines than the one that the export compares with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autoformer_zoo.onnx.check import TOLERANCES, made_inputs
from autoformer_zoo.onnx.export import export_onnx
from autoformer_zoo.onnx.metadata import Precision
from benchmarks.latency import LatencyOptions, validate
from benchmarks.measure import engines
from benchmarks.measure.engines import open_onnx
from tests.helpers.onnx_models import IN_ONE_PROCESS, made_images, reuse_exports, small_model

pytestmark = IN_ONE_PROCESS


def test_openvino_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="OpenVINO is not installed: pip install"):
        validate(LatencyOptions(backend=("openvino",)))


@pytest.mark.parametrize("precision", ["fp32", "int8-dynamic", "int8-static"])
def test_openvino_gives_the_outputs_of_onnxruntime(
    precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    reuse_exports(monkeypatch)
    path, images = tmp_path / "net.onnx", made_inputs(3, (16, 24))
    calibration = made_images() if precision == "int8-static" else None
    export_onnx(small_model(), path, precision=precision, calibration=calibration)
    expected = open_onnx("onnxruntime", path, threads=1)(images)
    tolerance = TOLERANCES[precision] * np.abs(expected).max()
    for batch in (3, None):
        found = open_onnx("openvino", path, threads=1, batch=batch)(images)
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
