"""Models as ONNX files for a benchmark, exported once each by this package's `export_onnx`.

It takes timm's models too, so all competitors come from the same exporter and quantizer. Needs
onnx and onnxruntime when it is used, not when it is imported.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from torch import nn

# Dynamic quantization needs no pictures to calibrate with.
PRECISIONS: Mapping[str, Literal["fp32", "int8-dynamic"]] = MappingProxyType(
    {"fp32": "fp32", "int8": "int8-dynamic"}
)

_log = logging.getLogger(__name__)


class OnnxFiles:
    """Exported files in a folder, by model, input size and precision."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str, module: nn.Module, size: str, precision: str) -> Path:
        """Return a model's file; it is exported when it is first asked for.

        Args:
            name: tells models apart.
            module: the model, fp32 on the CPU, in eval mode, of that input size.
            size: input height x width in pixels, as text.
            precision: fp32 or int8.
        """
        from autoformer_zoo.onnx_export import export_onnx

        path = self._folder / f"{name.replace('/', '_')}-{size}-{precision}.onnx"
        if not path.exists():
            _log.info("exporting %s, %s, %s", name, size, precision)
            export_onnx(module, path, precision=PRECISIONS[precision])
        return path
