"""timm's evaluation transform as an ONNX graph: uint8 images of any size to the network's input.

Resize so that the shorter side fits, crop the centre, normalise. Resizing is a product with a
matrix of weights from each side, computed in the graph: standard operators, which every engine
computes alike. ONNX' own Resize is not used: engines differ in its antialiasing.
`classifier.prepare` is the same transform in Python.

Like Pillow, the graph rounds to bytes after each side. It takes columns first, as Pillow before
version 13 always does; where a newer one takes rows first, some pixels differ by a grey level.

Source: timm 1.0, timm/data/transforms_factory.py (transforms_imagenet_eval, crop modes center and
squash); Pillow, src/libImaging/Resample.c (filters).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# onnxscript compiles the functions below, and refuses annotations that are not ONNX types.

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from autoformer_zoo.onnx.metadata import OnnxMetadata

if TYPE_CHECKING:
    import onnx

FLOAT, INT64, DOUBLE = 1, 7, 11  # ONNX' numbers of element types


def prepend_preprocessing(
    network: onnx.ModelProto, metadata: OnnxMetadata, batch_size: int | None
) -> onnx.ModelProto:
    """Return the network with the preparation of images before it.

    Args:
        network: takes (B, 3, height, width).
        metadata: how images are prepared.
        batch_size: of the input; any if None.

    Raises:
        ValueError: the metadata lack the preprocessing, or name an unknown filter.
    """
    from onnx import compose

    if metadata.mean is None or metadata.std is None:
        raise ValueError(
            "preprocessing needs the images' mean and std, and the model has no pretrained_cfg; "
            "make it with create_model, or set model.pretrained_cfg"
        )
    if metadata.interpolation not in ("bicubic", "bilinear"):
        raise ValueError(
            f"preprocessing cannot resize by {metadata.interpolation!r}; expected bicubic or "
            "bilinear"
        )
    [opset] = [each.version for each in network.opset_import if each.domain == ""]
    before = _compile(metadata, batch_size, opset, network.ir_version)
    before = compose.add_prefix(before, "preprocess/", rename_inputs=False)
    io_map = [(before.graph.output[0].name, network.graph.input[0].name)]
    merged: onnx.ModelProto = compose.merge_models(before, network, io_map=io_map)
    del merged.opset_import[:]  # which now has each version twice
    merged.opset_import.extend(network.opset_import)
    return merged


def _compile(
    metadata: OnnxMetadata, batch_size: int | None, opset: int, ir_version: int
) -> onnx.ModelProto:
    """Make the graph. What the functions take from outside becomes a constant in it."""
    import onnxscript
    from onnx import numpy_helper
    from onnxscript import optimizer, script

    op: Any = getattr(onnxscript, f"opset{opset}")
    resized_size, pillow_filter = _resized_size(op, metadata), _filter(op, metadata.interpolation)
    height, width = metadata.input_size
    # The network's pixels run from 0 to 1, these to 255.
    mean, std = (
        numpy_helper.from_array((255 * np.asarray(values)[:, None, None]).astype(np.float32))
        for values in (metadata.mean, metadata.std)
    )

    @script(default_opset=op)
    def weights_of_pixels(given, resized, kept):
        """(kept, given): what each pixel of a side adds to those that the crop keeps."""
        first = op.Cast(op.Round(op.Cast(resized - kept, to=FLOAT) * 0.5), to=INT64)
        # Pixel i is centred at (i + 1/2) * given / resized of the image. Whole numbers, halves and
        # quotients multiplied away, keep differences exact, however large the image.
        centres = (2 * (op.Range(0, op.Squeeze(kept), 1) + first) + 1) * given
        pixels = (2 * op.Range(0, op.Squeeze(given), 1) + 1) * resized
        distances = op.Abs(op.Cast(op.Unsqueeze(centres, [1]) - pixels, to=FLOAT))
        # Measured in pixels of the coarser side: this is the antialiasing.
        weights = pillow_filter(distances / op.Cast(2 * op.Max(given, resized), to=FLOAT))
        return weights / op.ReduceSum(weights, [1])

    @script(default_opset=op)
    def preprocess(images):
        given = op.Shape(images, start=1, end=3)
        resized = resized_size(given)
        rows = weights_of_pixels(given[0:1], resized[0:1], op.Constant(value_ints=[height]))
        columns = weights_of_pixels(given[1:2], resized[1:2], op.Constant(value_ints=[width]))
        x = op.Cast(op.Transpose(images, perm=[0, 3, 1, 2]), to=FLOAT)
        x = op.Clip(op.Floor(op.MatMul(x, op.Transpose(columns)) + 0.5), 0.0, 255.0)
        x = op.Clip(op.Floor(op.MatMul(rows, x) + 0.5), 0.0, 255.0)
        return (x - op.Constant(value=mean)) / op.Constant(value=std)

    uint8, float32 = cast(Any, onnxscript.UINT8), cast(Any, onnxscript.FLOAT)
    batch = batch_size or "batch"
    model = preprocess.to_model_proto(
        input_types=[uint8[batch, "height", "width", 3]],
        output_types=[float32[batch, 3, height, width]],
        ir_version=ir_version,
    )
    return optimizer.optimize(model)  # puts the functions' bodies where they are called


def _resized_size(op: Any, metadata: OnnxMetadata) -> Any:
    """Return `classifier.resized_size` for a graph: the sides given to the sides resized to."""
    from onnxscript import script

    height, width = (math.floor(side / metadata.crop_pct) for side in metadata.input_size)

    @script(default_opset=op)
    def squash(given):
        return op.Constant(value_ints=[height, width])

    @script(default_opset=op)
    def to_square(given):
        return given * height / op.ReduceMin(given)

    @script(default_opset=op)
    def to_oblong(given):
        sides = op.Cast(given, to=DOUBLE)
        targets = op.Cast(op.Constant(value_ints=[height, width]), to=DOUBLE)
        return op.Cast(op.Round(sides / op.ReduceMin(sides / targets)), to=INT64)

    if metadata.crop_mode == "squash":
        return squash
    return to_square if height == width else to_oblong


def _filter(op: Any, interpolation: str) -> Any:
    """Return Pillow's filter for a graph: distances to weights."""
    from onnxscript import script

    @script(default_opset=op)
    def bicubic(x):  # with a = -1/2
        near = (1.5 * x - 2.5) * x * x + 1.0
        far = ((2.5 - 0.5 * x) * x - 4.0) * x + 2.0
        return op.Where(x < 1.0, near, op.Where(x < 2.0, far, 0.0))

    @script(default_opset=op)
    def bilinear(x):
        return op.Relu(1.0 - x)

    return bicubic if interpolation == "bicubic" else bilinear
