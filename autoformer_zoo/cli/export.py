"""The verb `export`: a model as an ONNX file, or as a folder for the web, compared with PyTorch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from autoformer_zoo.cli.command import option
from autoformer_zoo.cli.extract import LayoutOption
from autoformer_zoo.onnx.metadata import OLDEST_OPSET, Precision

if TYPE_CHECKING:
    from autoformer_zoo.onnx.check import OnnxReport

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True, slots=True)
class Export:
    """Write a model as an ONNX file or as a folder for the web, and compare it with PyTorch."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME|FILE")]
    """A model of `list`, or a file that holds a subnet's or a supernet's weights."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.onnx|DIR")]
    """The file to write, an existing one is replaced; with --target web, the folder."""
    target: Literal["file", "web"] = "file"
    """web: a folder that transformers.js and optimum load, with the network in fp32 and int8."""
    config: Annotated[Path | None, option("CONFIG.json", "(default: the model's own)")] = None
    """Cut this subnet out of a supernet."""
    model: Annotated[str | None, option("NAME", "(default: as the file records)")] = None
    """With FILE: use the normalisation and class names of this model of `list`."""
    layout: LayoutOption = None
    precision: Precision = "fp32"
    """Number format of the weights; int8-static needs --calibration."""
    calibration: Annotated[Path | None, option("FOLDER", "(for int8-static)")] = None
    """Measure the ranges of activations on these images, some hundred typical ones."""
    img_size: Annotated[int | None, option("PIXELS", "(default: the model's)")] = None
    """Make the file for inputs of this side."""
    batch_size: Annotated[int | None, option("N", "(default: any)")] = None
    """Make the file for batches of exactly this many images."""
    opset: int = OLDEST_OPSET
    """Version of the ONNX operator set."""
    preprocess: bool = False
    """Include resizing, cropping and normalising: the file then takes uint8 images of any size."""
    softmax: bool = False
    """Include softmax: the file then returns probabilities."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> Iterator[str]:
        """Write the file, and yield its size and its differences from PyTorch."""
        from autoformer_zoo.weights.files import check_output

        if self.target == "web":
            yield from self._run_web()
            return
        check_output(self.out, [Path(self.source)], [".onnx"])
        if (self.precision == "int8-static") != (self.calibration is not None):
            raise ValueError("--precision int8-static and --calibration FOLDER need each other")

        from autoformer_zoo.onnx.export import export_onnx

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

    def _run_web(self) -> Iterator[str]:
        fixed = (self.precision != "fp32", self.calibration, self.batch_size)
        if any(fixed) or self.preprocess or self.softmax:
            raise ValueError(
                "--target web has its own formats: leave out --precision, --calibration, "
                "--batch-size, --preprocess and --softmax"
            )
        from autoformer_zoo.onnx.web import export_web

        reports = export_web(self._load(), self.out, img_size=self.img_size, opset=self.opset)
        if self.json:
            yield json.dumps([report.to_dict() for report in reports])
            return
        for report in reports:
            yield from _report_lines(report)

    def _load(self) -> Any:  # a timm classifier
        from autoformer_zoo.cli.inputs import load_model, read_config
        from autoformer_zoo.models import factory

        subnet = None if self.config is None else read_config(self.config)
        path = Path(self.source)
        if path.suffix not in WEIGHT_SUFFIXES and not path.is_file():
            if self.model is not None or self.layout is not None:
                raise ValueError("--model and --layout describe a file: give one instead of a name")
            return factory.create_model(self.source, pretrained=True, subnet=subnet)
        return load_model(path, self.model, self.layout, subnet)


def _report_lines(report: OnnxReport) -> Iterator[str]:
    yield (
        f"{report.path}: {report.precision}, opset {report.opset}, {report.params:,} parameters, "
        f"{report.size_bytes:,} bytes"
    )
    for batch, difference in zip(report.batch_sizes, report.max_differences, strict=True):
        yield f"  batch {batch}: outputs differ from PyTorch by at most {difference:.2g}"
    yield (
        f"  best class as in PyTorch: {100 * report.top1_agreement:.1f} % "
        f"(differences up to {report.tolerance:.2g} are allowed)"
    )
