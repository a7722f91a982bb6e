"""The verb `predict`: class names of images, with PyTorch or onnxruntime."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from autoformer_zoo.cli.command import option
from autoformer_zoo.cli.extract import LayoutOption

if TYPE_CHECKING:
    from autoformer_zoo.classify.images import ImageLike
    from autoformer_zoo.classify.predictions import Prediction

DEFAULT_MODEL = "autoformer_nano"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}  # of onnxruntime


@dataclass(frozen=True, slots=True)
class Predict:
    """Classify images."""

    images: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="IMAGE [IMAGE ...]", help_behavior_hint="(one or more)"),
    ]
    """Image files, folders that are searched for images, or - for standard input."""
    model: Annotated[str | None, option("NAME", f"(default: {DEFAULT_MODEL})")] = None
    """Use this model of `list`. With --checkpoint, use its normalisation and class names."""
    checkpoint: Annotated[Path | None, option("FILE", "(default: the model's own)")] = None
    """Load weights from this file: a subnet, a supernet to cut --model from, or an .onnx file."""
    layout: LayoutOption = None
    top_k: int = 5
    """Print this many classes of each image, the most probable first."""
    batch_size: int = 32
    """Classify this many images at a time."""
    backend: Literal["torch", "onnxruntime"] = "torch"
    """Run the network with this library; onnxruntime needs an .onnx file that `export` wrote."""
    device: str = "cpu"
    """Run on this device: cpu, cuda, cuda:1, mps, ...; with onnxruntime, cpu or cuda."""
    threads: Annotated[int | None, option("N", "(default: the library's choice)")] = None
    """Use this many threads on the CPU."""
    skip_unreadable: bool = False
    """Exit with code 0 even if some images cannot be read."""
    json: bool = False
    """Print one JSON array instead of text."""

    def run(self) -> Iterator[str]:
        """Yield the lines of each image's predictions as soon as they are computed."""
        from autoformer_zoo.classify.images import iter_inputs
        from autoformer_zoo.classify.predictions import require_positive

        if not self.images:
            raise ValueError("no image was given; expected files or folders")
        for flag, number in (("--top-k", self.top_k), ("--batch-size", self.batch_size)):
            require_positive(flag, number)
        require_positive("--threads", 1 if self.threads is None else self.threads)
        if "-" in self.images and sys.stdin is None:
            raise ValueError("standard input is closed; give image files or folders in place of -")
        images = [sys.stdin.buffer if image == "-" else image for image in self.images]
        # Names are cheap: a missing path is reported before the network is made.
        total = sum(1 for _ in iter_inputs(images))
        answers = _with_progress(self._answers(images), total)

        answered, failure = 0, None
        try:
            for predictions in answers:
                if self.json:
                    yield ("," if answered else "[") + _to_json(predictions)
                else:
                    yield from answer_lines(predictions)
                answered += 1
        except Exception as error:  # standard output remains valid JSON
            failure = error
        if self.json:
            yield "]" if answered else "[]"
        if failure:
            raise failure
        if answered < total and not self.skip_unreadable:
            raise ValueError(
                f"{total - answered} of {total} images could not be read, see above; give "
                "--skip-unreadable if that is expected"
            )

    def _answers(self, images: Sequence[ImageLike]) -> Iterator[list[Prediction]]:
        options: dict[str, Any] = {
            "top_k": self.top_k,
            "batch_size": self.batch_size,
            "skip_unreadable": True,  # `run` counts them
        }
        if self.backend == "onnxruntime":
            return self._onnx_classifier().iter_predictions(images, **options)

        import torch

        from autoformer_zoo.classify.predict import iter_predictions
        from autoformer_zoo.network.frozen import freeze
        from autoformer_zoo.network.vit import AutoFormer

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        model = self._torch_model().eval()
        if self.device == "cpu" and isinstance(model, AutoFormer):
            model = freeze(model)  # the command owns the model: nothing else can change it
        return iter_predictions(model, images, device=self.device, **options)

    def _torch_model(self) -> Any:  # a timm classifier
        from autoformer_zoo.cli.inputs import load_model
        from autoformer_zoo.models import factory

        if self.checkpoint is None:
            if self.layout is not None:
                raise ValueError("--layout describes a file: give --checkpoint with it")
            return factory.create_model(self.model or DEFAULT_MODEL, pretrained=True)
        if self.checkpoint.suffix == ".onnx":
            raise ValueError(f"{self.checkpoint} is an ONNX file: give --backend onnxruntime")
        return load_model(self.checkpoint, self.model, self.layout)

    def _onnx_classifier(self) -> Any:  # an OnnxClassifier
        from autoformer_zoo.onnx.classifier import OnnxClassifier

        if self.model is not None or self.layout is not None:
            raise ValueError("--model and --layout are for torch: an .onnx file describes itself")
        if self.checkpoint is None or self.checkpoint.suffix != ".onnx":
            raise ValueError(
                "--backend onnxruntime runs an ONNX file: give --checkpoint FILE.onnx, which "
                "`autoformer-zoo export` writes"
            )
        if self.device not in PROVIDERS:
            known = " or ".join(PROVIDERS)
            raise ValueError(f"onnxruntime cannot use device {self.device!r}; expected {known}")
        return OnnxClassifier(self.checkpoint, [PROVIDERS[self.device]], self.threads)


def answer_lines(predictions: Iterable[Prediction]) -> Iterator[str]:
    """Yield the image's name and, below it, its classes."""
    best, *rest = predictions
    yield best.image
    for prediction in (best, *rest):
        yield f"  {100 * prediction.probability:5.1f} %  {prediction.label}"


def _to_json(predictions: Sequence[Prediction]) -> str:
    top = [{"label": p.label, "index": p.index, "probability": p.probability} for p in predictions]
    return json.dumps({"image": predictions[0].image, "top": top})


def _with_progress(answers: Iterator[list[Prediction]], total: int) -> Iterable[list[Prediction]]:
    """Show a bar on stderr if someone watches it while the answers go elsewhere."""
    if sys.stdout.isatty() or not sys.stderr.isatty():
        return answers
    from tqdm import tqdm

    bar: Iterable[list[Prediction]] = tqdm(answers, total=total, unit="image")
    return bar
