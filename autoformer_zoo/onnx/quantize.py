"""An exported network in 8 bits, with onnxruntime's own quantizer.

Weights become int8, one scale an output channel, in the linear layers of the blocks: nine tenths
of the parameters and of the time. The patch projection, the head, and attention between its
projections stay in float: they are small, and lose accuracy first. Activations become uint8, with
a range that is taken from each batch ("int8-dynamic") or from calibration images beforehand
("int8-static"). fp16 is exported by torch itself, see `export.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

BATCH = 16  # calibration images at a time


def quantize(
    proto: onnx.ModelProto, calibration: NDArray[np.float32] | None = None
) -> onnx.ModelProto:
    """Return a network with the weights of its blocks in 8 bits.

    Args:
        proto: the network in fp32.
        calibration: inputs (B, channels, height, width) that set the ranges of activations; if
            None, each batch sets its own.
    """
    import onnx

    nodes = _to_quantize(proto)
    # The exporter's shapes of intermediate results contradict the quantizer's new ones, which all
    # onnxruntimes before 1.32 refuse (ShapeInferenceError); without, they are inferred again.
    del proto.graph.value_info[:]
    # onnxruntime 1.18 looks into a table that newer versions of onnx do not have.
    table = SimpleNamespace(TENSOR_TYPE_TO_NP_TYPE={onnx.TensorProto.INT8: np.dtype(np.int8)})
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(onnx, "mapping", table, create=True),
    ):
        source, target = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        onnx.save(proto, source)
        if calibration is None:
            _dynamic(source, target, nodes)
        else:
            _static(source, target, nodes, _reader(calibration, proto.graph.input[0]))
        quantized: onnx.ModelProto = onnx.load(target)
    return quantized


def _to_quantize(proto: onnx.ModelProto) -> list[str]:
    """Return the names of the linear layers of the blocks: products with a constant, and a bias.

    The head is a Gemm, and relative position has products without bias.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    summed = {
        name
        for node in proto.graph.node
        if node.op_type == "Add" and constants.intersection(node.input)
        for name in node.input
    }
    return [
        node.name
        for node in proto.graph.node
        if node.op_type == "MatMul" and node.input[1] in constants and node.output[0] in summed
    ]


def _dynamic(source: Path, target: Path, nodes: Sequence[str]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=list(nodes),
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )


def _static(source: Path, target: Path, nodes: Sequence[str], reader: Any) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        source,
        target,
        reader,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=list(nodes),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        # Residuals, logits and what goes into GELU stay in float.
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )


def _reader(calibration: NDArray[np.float32], given: onnx.ValueInfoProto) -> Any:
    """Return what the quantizer reads batches from, of the size that the network's input takes."""
    from onnxruntime.quantization import CalibrationDataReader

    fixed = given.type.tensor_type.shape.dim[0].dim_value  # 0 if it takes any
    size = fixed or BATCH
    if fixed:  # the last batch is filled with images once more, which moves no range
        whole = -(-len(calibration) // fixed) * fixed
        calibration = np.resize(calibration, (whole, *calibration.shape[1:]))
    batches = iter(np.array_split(calibration, range(size, len(calibration), size)))

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(batches, None)
            return None if batch is None else {given.name: batch}

    return Reader()
