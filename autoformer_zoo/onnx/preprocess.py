"""timm's evaluation transform as ONNX nodes: uint8 images of any size to the network's input.

Resize to where the shorter side fits, crop the centre, normalise. onnxruntime's antialiased Resize
on bytes works as Pillow's does, which rounds to bytes after each direction; in other runtimes
expect differences of a grey level. `onnx_classifier.prepare` is the same transform in Python.

Source: timm 1.0, timm/data/transforms_factory.py (transforms_imagenet_eval, crop mode center).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from autoformer_zoo.onnx.metadata import OnnxMetadata

if TYPE_CHECKING:
    import onnx

RAW_IMAGES = "pictures"
_PREPARED = "prepared"
_FILTERS: dict[str, dict[str, Any]] = {
    # Pillow's cubic has a = -0.5, and weighs only what lies inside the image.
    "bicubic": {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
    "bilinear": {"mode": "linear"},
}


def prepend_preprocessing(
    network: onnx.ModelProto, metadata: OnnxMetadata, batch_size: int | None
) -> onnx.ModelProto:
    """Return the network with the preparation of images before it.

    Args:
        network: takes (B, 3, height, width).
        metadata: says how images are prepared.
        batch_size: of the input; any where None.

    Raises:
        ValueError: the metadata do not say how, or name a filter that ONNX' Resize lacks.
    """
    from onnx import compose

    if metadata.mean is None or metadata.std is None:
        raise ValueError(
            "preprocess=True needs to know how images are normalised, and the model has no "
            "pretrained_cfg; make it with create_model, or set model.pretrained_cfg"
        )
    if metadata.interpolation not in _FILTERS:
        raise ValueError(
            f"preprocess=True cannot resize by {metadata.interpolation!r}; expected one of "
            f"{', '.join(_FILTERS)}"
        )
    graph = _Graph()
    rows, columns = _resized_size(graph, metadata)
    _prepare(graph, metadata, rows, columns)
    before = graph.to_model(metadata, batch_size, network)
    io_map = [(_PREPARED, network.graph.input[0].name)]
    merged: onnx.ModelProto = compose.merge_models(before, network, io_map=io_map)
    del merged.opset_import[:]  # which now has each version twice
    merged.opset_import.extend(network.opset_import)
    return merged


class _Graph:
    """Collects nodes and constants under names of their own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node and return its output's name."""
        from onnx import helper

        output = output or f"preprocess/{kind}_{len(self.nodes)}"
        name = f"preprocess/node_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=name, **attributes))
        return output

    def constant(self, values: Any, dtype: Any) -> str:
        """Add a constant and return its name."""
        from onnx import numpy_helper

        name = f"preprocess/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def integers(self, *values: int) -> str:
        """Add a constant vector of whole numbers."""
        return self.constant(values, np.int64)

    def cast(self, value: str, kind: str) -> str:
        """Convert to an element type, by its name in ONNX."""
        import onnx

        return self.add("Cast", value, to=onnx.TensorProto.DataType.Value(kind))

    def to_model(
        self, metadata: OnnxMetadata, batch_size: int | None, like: onnx.ModelProto
    ) -> onnx.ModelProto:
        """Make a model of what was collected, of the same versions as another one."""
        from onnx import TensorProto, helper

        batch: int | str = batch_size or "batch"
        given = helper.make_tensor_value_info(
            RAW_IMAGES, TensorProto.UINT8, [batch, "height", "width", 3]
        )
        prepared = helper.make_tensor_value_info(
            _PREPARED, TensorProto.FLOAT, [batch, 3, *metadata.input_size]
        )
        graph = helper.make_graph(self.nodes, "preprocess", [given], [prepared], self.constants)
        made: onnx.ModelProto = helper.make_model(
            graph, opset_imports=like.opset_import, ir_version=like.ir_version
        )
        return made


def _resized_size(graph: _Graph, metadata: OnnxMetadata) -> tuple[str, str]:
    """Compute `onnx_classifier.resized_size`: height and width, vectors of one number."""
    sides = [graph.add("Shape", RAW_IMAGES, start=axis, end=axis + 1) for axis in (1, 2)]
    scaled = [math.floor(side / metadata.crop_pct) for side in metadata.input_size]
    if scaled[0] == scaled[1]:
        shorter = graph.add("Min", *sides)
        side = graph.integers(scaled[0])
        rows, columns = (graph.add("Div", graph.add("Mul", s, side), shorter) for s in sides)
        return rows, columns
    doubles = [graph.cast(side, "DOUBLE") for side in sides]
    ratios = [
        graph.add("Div", given, graph.constant([wanted], np.float64))
        for given, wanted in zip(doubles, scaled, strict=True)
    ]
    ratio = graph.add("Min", *ratios)
    rounded = [graph.add("Round", graph.add("Div", side, ratio)) for side in doubles]
    rows, columns = (graph.cast(side, "INT64") for side in rounded)
    return rows, columns


def _prepare(graph: _Graph, metadata: OnnxMetadata, rows: str, columns: str) -> None:
    """Resize, crop and normalise, to `_PREPARED`."""
    planes = graph.add("Transpose", RAW_IMAGES, perm=[0, 3, 1, 2])  # (B, 3, height, width)
    resized = graph.add(
        "Resize",
        planes,
        "",
        "",
        graph.add("Concat", rows, columns, axis=0),
        axes=[2, 3],
        antialias=1,
        coordinate_transformation_mode="half_pixel",
        **_FILTERS[metadata.interpolation],
    )
    starts, ends = [], []
    for side, wanted in zip((rows, columns), metadata.input_size, strict=True):
        spare = graph.cast(graph.add("Sub", side, graph.integers(wanted)), "FLOAT")
        half = graph.add("Round", graph.add("Mul", spare, graph.constant([0.5], np.float32)))
        starts.append(graph.cast(half, "INT64"))
        ends.append(graph.add("Add", starts[-1], graph.integers(wanted)))
    cropped = graph.add(
        "Slice",
        resized,
        graph.add("Concat", *starts, axis=0),
        graph.add("Concat", *ends, axis=0),
        graph.integers(2, 3),
    )
    mean, std = (
        graph.constant(255 * np.asarray(values, np.float64)[:, None, None], np.float32)
        for values in (metadata.mean, metadata.std)
    )
    centred = graph.add("Sub", graph.cast(cropped, "FLOAT"), mean)
    graph.add("Div", centred, std, output=_PREPARED)
