"""ONNX files in the engines that are measured on the CPU: onnxruntime and OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from autoformer_zoo.specialization.latency.network_runs import open_session

Engine = Literal["onnxruntime", "openvino"]
ENGINES = get_args(Engine)
Array = NDArray[np.float32]


def require_installed(*backends: str) -> None:
    """Raise ValueError if OpenVINO is among the backends and not installed."""
    if "openvino" in backends and find_spec("openvino") is None:
        raise ValueError("OpenVINO is not installed: pip install openvino")


def open_onnx(
    engine: Engine, path: Path, threads: int, precision: str = "fp32", batch: int | None = None
) -> Callable[[Array], Array]:
    """Open an ONNX file of one input and one output, and return what runs it.

    Args:
        engine: what runs it.
        path: the file.
        threads: of one operator.
        precision: "bf16" lets OpenVINO compute a file in fp32 so; otherwise the file's own.
        batch: images of each call, for which OpenVINO compiles the file; any if None.
    """
    if engine == "onnxruntime":
        session = open_session(path, threads)
        name = session.get_inputs()[0].name
        return lambda images: session.run(None, {name: images})[0]
    request = _openvino_request(path, threads, precision, batch)
    return lambda images: request.infer([images], share_inputs=True)[0]


def _openvino_request(path: Path, threads: int, precision: str, batch: int | None) -> Any:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    if batch is not None:
        shape = model.inputs[0].get_partial_shape()
        shape[0] = batch
        model.reshape(shape)
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        # The int8 parts of a file stay int8.
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    return core.compile_model(model, "CPU", settings).create_infer_request()
