"""TODO docstring."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from autoformer_zoo.classify.predict import iter_predictions
from autoformer_zoo.classify.predictions import Prediction
from autoformer_zoo.cli.inputs import LayoutOption, load_model
from autoformer_zoo.cli.models import answer_lines
from autoformer_zoo.factory import create_model
from autoformer_zoo.onnx.classifier import OnnxClassifier

DEFAULT_MODEL = "autoformer_nano"


@dataclass(frozen=True, slots=True)
class Predict:
    """Say what is on images, with probabilities."""

    images: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="IMAGE [IMAGE ...]", help_behavior_hint="(one or more)"),
    ]
    """Files, or folders, which are searched for images."""
    model: Annotated[
        str | None,
        tyro.conf.arg(metavar="NAME", help_behavior_hint=f"(default: {DEFAULT_MODEL})"),
    ] = None
    """A model of `list`; with --checkpoint, the one whose normalisation and class names hold."""
    checkpoint: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: the model's own)")
    ] = None
    """Weights to use: one subnet, or a supernet, out of which --model is cut; or a .onnx file."""
    layout: LayoutOption = None
    """How q, k and v lie in a supernet's .pth that has no header."""
    top_k: int = 5
    """Answers a image."""
    batch_size: int = 32
    """Images in memory at a time."""
    backend: Literal["torch", "onnxruntime"] = "torch"
    """What runs the network; onnxruntime takes the .onnx file that `export` wrote."""
    device: str = "cpu"
    """Where to run, as PyTorch names it: cpu, cuda, cuda:1, mps; with onnxruntime cpu or cuda."""
    skip_unreadable: bool = False
    """Warn of a image that cannot be read, and go on."""
    json: bool = False
    """Print one JSON array instead of text."""

    def run(self) -> Iterator[str]:
        """Yield each image's answers as they come."""
        if not self.images:
            raise ValueError("no image was given; expected files or folders")
        if self.backend == "onnxruntime":
            if self.model is not None or self.layout is not None:
                raise ValueError(
                    "--model and --layout are for torch: the .onnx file says all of itself"
                )
            answers = iter_onnx_predictions(
                self.checkpoint,
                self.images,
                self.top_k,
                self.batch_size,
                self.device,
                self.skip_unreadable,
            )
        else:
            answers = self._run_torch()
        yield from _json_array(answers) if self.json else answer_lines(answers)

    def _run_torch(self) -> Iterator[list[Prediction]]:
        if self.checkpoint is not None and self.checkpoint.suffix == ".onnx":
            raise ValueError(f"{self.checkpoint} is an ONNX file: give --backend onnxruntime")
        if self.checkpoint is not None:
            model = load_model(self.checkpoint, self.model, self.layout)
        elif self.layout is not None:
            raise ValueError("--layout describes a file: give --checkpoint with it")
        else:
            model = create_model(self.model or DEFAULT_MODEL, pretrained=True)
        return iter_predictions(
            model.eval(),
            self.images,
            self.top_k,
            self.batch_size,
            self.device,
            self.skip_unreadable,
        )


def _json_array(answers: Iterator[list[Prediction]]) -> Iterator[str]:
    """Give one JSON array, an element a line, without holding it all."""
    opening = "["
    for predictions in answers:
        top = [
            {"label": p.label, "index": p.index, "probability": p.probability} for p in predictions
        ]
        yield f"{opening}{json.dumps({'image': predictions[0].image, 'top': top})}"
        opening = ","
    yield "]" if opening == "," else "[]"


PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def iter_onnx_predictions(
    file: Path | None,
    images: Sequence[str],
    top_k: int,
    batch_size: int,
    device: str,
    skip_unreadable: bool,
) -> Iterator[list[Prediction]]:
    """Classify images with an ONNX file; arguments as `predict` has them on the command line.

    Raises:
        ValueError: no .onnx file was given, or the device is none of onnxruntime's here.
        FileNotFoundError: the file does not exist.
    """
    if file is None or file.suffix != ".onnx":
        raise ValueError(
            "--backend onnxruntime runs an ONNX file: give --checkpoint FILE.onnx, which "
            "`autoformer-zoo export` writes"
        )
    if device not in PROVIDERS:
        known = " or ".join(PROVIDERS)
        raise ValueError(f"device {device!r} cannot be used with onnxruntime; expected {known}")
    classifier = OnnxClassifier(file, providers=[PROVIDERS[device]])
    return classifier.iter_predictions(images, top_k, batch_size, skip_unreadable)
