"""What can be scored: a model's name, a file of weights, an ONNX file, or a subnet of a supernet.

    NAME            weights of timm's or this package's registry
    NAME=FILE       weights from a file, images prepared as for that name; of a supernet's file
                    the name's subnet is cut
    FILE            one subnet's file of this package, as autoformer_subnet=FILE
    FILE.onnx       in an engine, with the preprocessing that the file records

What a file's header records (class names, mean, std, crop) applies; what it does not record is as
for NAME. Without NAME a file that records nothing must have ImageNet's 1000 classes. Missing
weights are a `MissingWeightsError`, and never replaced by random ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from autoformer_zoo import create_model
from autoformer_zoo.classify.predict import class_names, input_size, make_transform
from autoformer_zoo.models.factory import build_subnet
from autoformer_zoo.onnx.classifier import OnnxClassifier
from autoformer_zoo.published import MODELS
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import (
    CheckpointError,
    SubnetWeights,
    open_checkpoint,
)
from autoformer_zoo.weights.header import notes_to_cfg
from benchmarks.measure.engines import Engine, open_onnx
from benchmarks.measure.models import DTYPES, frozen, is_zoo_model, split_spec

ANY_SUBNET = "autoformer_subnet"  # the name that says nothing about the file
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
PREPARATION = ("interpolation", "mean", "std", "crop_pct", "crop_mode")


class MissingWeightsError(Exception):
    """The weights of a model are unavailable; the text gives the reason."""


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """Something that turns prepared images into one score for each class."""

    name: str
    run: Callable[[Tensor], Tensor]  # (B, 3, height, width) to (B, classes), both on the CPU
    prepare: Callable[[Image.Image], Any]  # RGB to a tensor or array (3, height, width)
    labels: tuple[str, ...]  # name of each output
    params: int
    data: Mapping[str, Any]  # input_size, interpolation, crop_pct, as timm has them
    backend: str
    precision: str

    @property
    def num_classes(self) -> int:
        """Number of outputs."""
        return len(self.labels)


def open_classifier(
    spec: str, device: str, precision: str, threads: int, engine: Engine = "onnxruntime"
) -> Classifier:
    """Make a classifier from one of the forms above.

    Args:
        spec: what to score.
        device: "cpu" or "cuda".
        precision: "fp32", "bf16" or "fp16"; an ONNX file has its own.
        threads: of the engine.
        engine: what runs an ONNX file.

    Raises:
        ValueError: the name is unknown, or the file is not for this.
        MissingWeightsError: there are no weights.
        CheckpointError: a file is refused.
    """
    if spec.endswith(".onnx"):
        return _open_onnx(Path(spec), threads, engine)
    return of_model(spec, _open_model(spec), device, precision)


def split_file(spec: str) -> tuple[str, Path | None]:
    """Split NAME, NAME=FILE or FILE into a name and a file.

    Raises:
        ValueError: the name is unknown, or the file is not there.
    """
    name, _, file = spec.partition("=")
    if not file and (Path(name).is_file() or Path(name).suffix in WEIGHT_SUFFIXES):
        name, file = ANY_SUBNET, name
    if form := split_spec(name)[1]:
        raise ValueError(f"{name}: answers do not depend on a form; leave @{form} out")
    if file and not Path(file).is_file():
        raise ValueError(f"{file} does not exist; expected the weights of {name}")
    return name, Path(file) if file else None


def open_subnets(
    supernet: str,
    subnets: Sequence[SubnetConfig],
    device: str,
    precision: str,
    img_size: int | None = None,
) -> list[Callable[[], Classifier]]:
    """Return a function for each subnet of a supernet, which cuts it and makes a classifier.

    Args:
        supernet: NAME, whose own supernet it is, NAME=FILE or FILE.
        subnets: what to cut.
        device: as in `open_classifier`.
        precision: as in `open_classifier`.
        img_size: side of the images in pixels; the supernet's by default.

    Raises:
        ValueError: there is no such supernet.
        CheckpointError: the file is refused.
    """
    name, file = split_file(supernet)
    if not is_zoo_model(name):
        raise ValueError(f"{name} has no supernet: expected a model of this package")
    checkpoint = None if file is None else open_checkpoint(file)
    if checkpoint is not None and not checkpoint.is_supernet:
        raise ValueError(f"{file} holds one subnet: score it by --models {supernet}")

    def open_one(title: str, subnet: SubnetConfig) -> Classifier:
        arguments: dict[str, Any] = {"subnet": subnet}
        if img_size:
            arguments["img_size"] = img_size
        with _naming(title):
            if checkpoint is not None:
                model: nn.Module = _of_weights(name, checkpoint.subnet(subnet), img_size)
            else:
                model = _with_weights(name, partial(create_model, name, True, **arguments))
        return of_model(title, model, device, precision)

    return [partial(open_one, f"{supernet}[{i}]", subnet) for i, subnet in enumerate(subnets)]


def of_model(name: str, model: nn.Module, device: str, precision: str) -> Classifier:
    """Make a classifier of a timm model."""
    dtype = DTYPES[precision]
    params = sum(parameter.numel() for parameter in model.parameters())
    module = frozen(model.eval().to(device, dtype))

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            scores: Tensor = module(images.to(device, dtype))
        return scores.float().cpu()

    data = {**resolve_model_data_config(model), "input_size": (3, *input_size(model))}
    return Classifier(
        name, run, make_transform(model), class_names(model), params, data, "eager", precision
    )


def _open_model(spec: str) -> nn.Module:
    name, file = split_file(spec)
    if file is None:
        return _open_pretrained(name)
    if not is_zoo_model(name):
        return _open_timm_file(name, file)
    with _naming(spec):
        checkpoint = open_checkpoint(file)
        if not checkpoint.is_supernet:
            return _of_weights(name, checkpoint.subnet())
        if name == ANY_SUBNET:
            raise ValueError(
                f"holds a supernet: give NAME={file} with the model whose subnet is to be cut, or "
                f"--supernet {file} with --subnets"
            )
        return _of_weights(name, checkpoint.subnet(MODELS[name.partition(".")[0]].subnet))


def _of_weights(name: str, weights: SubnetWeights, img_size: int | None = None) -> nn.Module:
    """Make the model of a file's weights; what its header does not record is the name's.

    Raises:
        ValueError: the file has no head, or neither header nor name describe its images.
    """
    if not weights.num_classes:
        raise ValueError("the file has no head, so nothing to score; expected a classifier's")
    model, recorded = build_subnet(weights, img_size), notes_to_cfg(weights.metadata)
    named: dict[str, Any] = timm.get_pretrained_cfg(name).to_dict()
    if name == ANY_SUBNET and "mean" not in recorded and weights.num_classes != 1000:
        raise ValueError(
            f"the file is for {weights.num_classes} classes and does not record how images are "
            "prepared: give NAME=FILE, with the model whose preparation applies (autoformer_nano: "
            "as CIFAR-10, autoformer_tiny: as ImageNet)"
        )
    same_classes = named["num_classes"] == weights.num_classes
    wanted = (*PREPARATION, *(("label_names",) if same_classes else ()))
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    cfg.update({key: named.get(key) for key in wanted if key not in recorded})
    return model


@contextmanager
def _naming(title: str) -> Iterator[None]:
    """Put the title in front of errors: one of many models may be wrong."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{title}: {error}") from None


def _open_pretrained(name: str) -> nn.Module:
    cfg = timm.models.get_pretrained_cfg(name)
    if not is_zoo_model(name) and not (cfg and cfg.has_weights):  # timm would only warn
        raise MissingWeightsError(f"timm has no weights of {name}")
    return _with_weights(name, partial(timm.create_model, name, pretrained=True))


def _with_weights(name: str, make: Callable[[], nn.Module]) -> nn.Module:
    """Call `make`; whatever stops a download becomes a `MissingWeightsError`."""
    try:
        return make()
    except (CheckpointError, OSError, RuntimeError) as error:  # the last two are timm's
        text = " ".join(str(error).split())
        raise MissingWeightsError(text if name in text else f"{name}: {text}") from error


def _open_timm_file(name: str, file: Path) -> nn.Module:
    try:
        return timm.create_model(name, checkpoint_path=str(file))
    except (RuntimeError, KeyError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{file} does not hold the weights of {name}: {text[:200]}") from None


def _open_onnx(file: Path, threads: int, engine: Engine) -> Classifier:
    import onnx

    if not file.is_file():
        raise ValueError(f"{file} does not exist; expected an ONNX file")
    classifier = OnnxClassifier(file, threads=threads)
    about = classifier.metadata
    if about.preprocess:
        raise ValueError(f"{file} prepares images itself; export it without --preprocess")
    graph = onnx.load(file, load_external_data=False).graph
    data = {
        "input_size": (3, *about.input_size),
        "interpolation": about.interpolation,
        "crop_pct": about.crop_pct,
    }
    run = classifier.run if engine == "onnxruntime" else open_onnx(engine, file, threads)
    return Classifier(
        str(file),
        lambda images: torch.from_numpy(run(images.numpy())).float(),
        classifier.prepare,
        classifier.labels or tuple(f"class {i}" for i in range(about.num_classes)),
        sum(math.prod(tensor.dims) for tensor in graph.initializer),
        data,
        engine,
        about.precision,
    )
