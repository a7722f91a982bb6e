"""ONNX on the command line: the verb `export`, and `predict --backend onnxruntime`.

Arguments to calls and results to lines; `export.py` and `classifier.py` do the work.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from torch import nn

from autoformer_zoo.cli.inputs import LayoutOption, load_model, read_config
from autoformer_zoo.factory import create_model
from autoformer_zoo.onnx.check import OnnxReport
from autoformer_zoo.onnx.export import OLDEST, Precision, export_onnx

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True, slots=True)
class Export:
    """Write a model as an ONNX file, and compare the file with the network in torch."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME|FILE")]
    """A model of `list`, or a file of weights: one subnet's, or a supernet's."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.onnx")]
    """The file to write; one that is there is replaced."""
    config: Annotated[
        Path | None,
        tyro.conf.arg(metavar="CONFIG.json", help_behavior_hint="(default: the model's own)"),
    ] = None
    """The subnet to cut out of a supernet."""
    model: Annotated[
        str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: ImageNet's)")
    ] = None
    """With FILE: the model of `list` whose normalisation and class names hold."""
    layout: LayoutOption = None
    """How q, k and v lie in a supernet's .pth that has no header."""
    precision: Precision = "fp32"
    """Of the weights; int8-static needs --calibration."""
    calibration: Annotated[
        Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(for int8-static)")
    ] = None
    """Images like those that the network will see; some hundred are enough."""
    img_size: Annotated[
        int | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint="(default: the model's)")
    ] = None
    """Input side in pixels."""
    batch_size: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: any)")
    ] = None
    """The only batch size that the file takes."""
    opset: int = OLDEST
    """Version of ONNX' operators."""
    preprocess: bool = False
    """Put resizing, cropping and normalising into the file: it takes uint8 images."""
    softmax: bool = False
    """Put softmax into the file: it gives probabilities."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> Iterator[str]:
        """Write the file and yield what was written, and how near it is to torch."""
        report = export_onnx(
            self._load(),
            self.out,
            img_size=self.img_size,
            batch_size=self.batch_size,
            opset=self.opset,
            precision=self.precision,
            calibration=self.calibration,
            preprocess=self.preprocess,
            softmax=self.softmax,
        )
        if self.json:
            yield json.dumps(report.to_dict())
        else:
            yield from _report_lines(report)

    def _load(self) -> nn.Module:
        subnet = None if self.config is None else read_config(self.config)
        path = Path(self.source)
        if path.suffix not in WEIGHT_SUFFIXES and not path.is_file():
            if self.model is not None or self.layout is not None:
                raise ValueError("--model and --layout describe a file: give one instead of a name")
            return create_model(self.source, pretrained=True, subnet=subnet)
        return load_model(path, self.model, self.layout, subnet)


def _report_lines(report: OnnxReport) -> Iterator[str]:
    yield (
        f"{report.path}: {report.precision}, opset {report.opset}, {report.params:,} parameters, "
        f"{report.size_bytes:,} bytes"
    )
    for batch, difference in zip(report.batch_sizes, report.max_differences, strict=True):
        yield f"  batch {batch}: at most {difference:.2g} from torch"
    yield (
        f"  best class as in torch: {100 * report.top1_agreement:.1f} % "
        f"(tolerance of differences {report.tolerance:.2g})"
    )
