"""Compare an exported file with PyTorch: differences and tolerances.

`export.py` runs this after every export; a file that fails is not written. Accuracy is another
matter: it needs labelled images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoformer_zoo.onnx.metadata import OnnxMetadata

Array = NDArray[np.float32]

# Largest difference over the largest logit (at least 1). Float formats round differently; int8 has
# steps of 1/127 in each of dozens of layers, and its accuracy is what docs/onnx.md measures.
TOLERANCES: Mapping[str, float] = MappingProxyType(
    {"fp32": 1e-4, "fp16": 2e-2, "int8-dynamic": 0.25, "int8-static": 0.25}
)
# Resizing in the graph may round a pixel to the next grey level, 1/255, where Pillow does not.
RESIZED = 1e-2
CHECK_BATCHES = (1, 3, 8)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near a file is to PyTorch.

    Args:
        batch_sizes: that were compared.
        max_differences: for each of them, the largest difference between the outputs.
        top1_agreement: share of the compared inputs with the same best class, 0 to 1.
        tolerance: what the largest difference was allowed to be.
    """

    batch_sizes: tuple[int, ...]
    max_differences: tuple[float, ...]
    top1_agreement: float
    tolerance: float


@dataclass(frozen=True, slots=True)
class OnnxReport(Agreement):
    """What an export wrote, and how near it is to PyTorch.

    Args:
        path: the file.
        size_bytes: its size.
        params: the network's parameters.
        precision: number format of its weights.
        opset: version of the ONNX operator set.
    """

    path: str
    size_bytes: int
    params: int
    precision: str
    opset: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return asdict(self)


def compare(
    path: Path,
    reference: Callable[[Array], Array],
    inputs: Sequence[NDArray[Any]],
    reference_inputs: Sequence[Array],
    metadata: OnnxMetadata,
) -> Agreement:
    """Run a file in onnxruntime and compare its outputs with PyTorch's.

    Args:
        path: the file.
        reference: the network in PyTorch, (B, 3, height, width) to (B, classes).
        inputs: batches for the file.
        reference_inputs: the same batches for the reference.
        metadata: of the file.

    Raises:
        ValueError: the outputs differ by more than the precision explains.
    """
    import onnxruntime

    precision = metadata.precision
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    differences, same, largest = [], [], 1.0
    for given, prepared in zip(inputs, reference_inputs, strict=True):
        expected = reference(prepared)
        found = session.run(None, {name: given})[0]
        if not np.isfinite(found).all():
            raise ValueError(
                f"the exported {precision} network returns NaN or infinity; nothing was written"
            )
        differences.append(float(np.abs(found - expected).max()))
        same.append(found.argmax(-1) == expected.argmax(-1))
        largest = max(largest, float(np.abs(expected).max()))
    tolerance = (TOLERANCES[precision] + (RESIZED if metadata.preprocess else 0)) * largest
    if max(differences) > tolerance:
        raise ValueError(
            f"the exported {precision} network differs from PyTorch by {max(differences):.3g}, at "
            f"most {tolerance:.3g} is allowed; nothing was written"
        )
    return Agreement(
        tuple(len(batch) for batch in inputs),
        tuple(differences),
        float(np.concatenate(same).mean()),
        tolerance,
    )


def made_inputs(batch: int, size: tuple[int, int], channels: int = 3, seed: int = 0) -> Array:
    """Return inputs (batch, channels, height, width) like normalised images: coarse and fine."""
    rng = np.random.default_rng(seed)
    height, width = size
    coarse = rng.normal(size=(batch, channels, 4, 4))
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    noise = rng.normal(size=(batch, channels, height, width))
    return (coarse[:, :, rows][..., columns] + 0.3 * noise).astype(np.float32)


def made_images(batch: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return images (batch, 91, 120, 3), neither square nor of a round size."""
    inputs = made_inputs(batch, (91, 120), seed=seed).transpose(0, 2, 3, 1)
    return (np.clip(inputs * 50 + 128, 0, 255)).astype(np.uint8)
