"""What can be scored: a model's name, a file of weights, an ONNX file, or a subnet of a supernet.

    NAME            weights of timm's or this package's registry
    NAME=FILE       that architecture with weights from a file; a supernet's are cut
    FILE            one subnet's file of this package, for 1000 classes
    FILE.onnx       in onnxruntime, with the preprocessing that the file describes

Weights that cannot be had are a `MissingWeightsError`, and never random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from autoformer_zoo import create_model
from autoformer_zoo.checkpoint import CheckpointError, load_subnet
from autoformer_zoo.space import SubnetConfig
from benchmarks.competitors import DTYPES, has_forms, split_spec
from benchmarks.onnx_sessions import make_session


class MissingWeightsError(Exception):
    """The weights of a model cannot be had; the text says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """Something that turns normalised pictures into one score a class."""

    name: str
    run: Callable[[Tensor], Tensor]  # (B, 3, height, width) to (B, classes), both on the CPU
    num_classes: int
    params: int
    data: Mapping[str, Any]  # input_size, interpolation, mean, std, crop_pct, as timm has them
    backend: str
    precision: str


def open_classifier(spec: str, device: str, precision: str, threads: int) -> Classifier:
    """Make a classifier from one of the forms above.

    Args:
        spec: what to score.
        device: "cpu" or "cuda".
        precision: "fp32", "bf16" or "fp16"; an ONNX file has its own.
        threads: of onnxruntime.

    Raises:
        ValueError: the name is unknown, or the file is not for this.
        MissingWeightsError: there are no weights.
        CheckpointError: a file is refused.
    """
    if spec.endswith(".onnx"):
        return _open_onnx(Path(spec), threads)
    name, _, file = spec.partition("=")
    if not file and Path(name).is_file():
        return of_model(spec, _open_subnet_file(Path(name)), device, precision)
    split_spec(name)
    model = _open_file(name, Path(file)) if file else _open_pretrained(name)
    return of_model(spec, model, device, precision)


def open_subnets(
    supernet: str, subnets: Sequence[SubnetConfig], device: str, precision: str
) -> list[Callable[[], Classifier]]:
    """Name the subnets of a supernet; each is cut when it is asked for.

    Args:
        supernet: NAME, whose own supernet it is, or NAME=FILE.
        subnets: what to cut.
        device: as in `open_classifier`.
        precision: as in `open_classifier`.
    """
    name, _, file = supernet.partition("=")
    split_spec(name)
    if not has_forms(name):
        raise ValueError(f"{name} has no supernet: expected a model of this package")

    def opener(index: int, subnet: SubnetConfig) -> Callable[[], Classifier]:
        def open_one() -> Classifier:
            weights: dict[str, Any] = {"checkpoint_path": file} if file else {"pretrained": True}
            model = _with_weights(name, lambda: create_model(name, subnet=subnet, **weights))
            return of_model(f"{name}[{index}]", model, device, precision)

        return open_one

    return [opener(index, subnet) for index, subnet in enumerate(subnets)]


def of_model(name: str, model: nn.Module, device: str, precision: str) -> Classifier:
    """Make a classifier of a timm model."""
    dtype = DTYPES[precision]
    module: Any = model.eval().to(device, dtype)

    def run(pictures: Tensor) -> Tensor:
        with torch.inference_mode():
            scores: Tensor = module(pictures.to(device, dtype))
        return scores.float().cpu()

    params = sum(parameter.numel() for parameter in module.parameters())
    data = resolve_model_data_config(module)
    return Classifier(name, run, module.num_classes, params, data, "eager", precision)


def _open_pretrained(name: str) -> nn.Module:
    cfg = timm.models.get_pretrained_cfg(name)
    if not has_forms(name) and not (cfg and cfg.has_weights):  # timm would warn and go on
        raise MissingWeightsError(f"timm has no weights of {name}")
    return _with_weights(name, lambda: timm.create_model(name, pretrained=True))


def _with_weights(name: str, make: Callable[[], nn.Module]) -> nn.Module:
    """Call `make`, whatever stops a download being a `MissingWeightsError`."""
    try:
        return make()
    except (CheckpointError, OSError, RuntimeError) as error:  # the last two are timm's
        text = " ".join(str(error).split())
        raise MissingWeightsError(text if name in text else f"{name}: {text}") from error


def _open_file(name: str, file: Path) -> nn.Module:
    if not file.is_file():
        raise ValueError(f"{file} does not exist; expected the weights of {name}")
    if has_forms(name):
        return create_model(name, checkpoint_path=file)
    try:
        return timm.create_model(name, checkpoint_path=str(file))
    except (RuntimeError, KeyError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{file} does not hold the weights of {name}: {text[:200]}") from None


def _open_subnet_file(file: Path) -> nn.Module:
    classes = load_subnet(file).num_classes
    if classes != 1000:
        raise ValueError(
            f"{file} is for {classes} classes and does not say how pictures are prepared: give "
            f"NAME={file}, with the model whose preparation holds"
        )
    return create_model("autoformer_subnet", checkpoint_path=file)


def _open_onnx(file: Path, threads: int) -> Classifier:
    import numpy as np
    import onnx

    from autoformer_zoo.onnx_metadata import OnnxMetadata

    if not file.is_file():
        raise ValueError(f"{file} does not exist; expected an ONNX file")
    session = make_session(file, threads)
    try:
        about = OnnxMetadata.from_properties(session.get_modelmeta().custom_metadata_map)
    except ValueError as error:
        raise ValueError(f"{file} {error}: export it with autoformer_zoo.export_onnx") from None
    if about.preprocess or about.mean is None or about.std is None:
        raise ValueError(f"{file} prepares pictures itself, or does not say how they are prepared")
    graph = onnx.load(file, load_external_data=False).graph
    params = sum(int(np.prod(each.dims)) for each in graph.initializer)
    name = session.get_inputs()[0].name

    def run(pictures: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: pictures.numpy()})[0])

    data = {
        "input_size": (3, *about.input_size),
        "interpolation": about.interpolation,
        "mean": about.mean,
        "std": about.std,
        "crop_pct": about.crop_pct,
        "crop_mode": "center",
    }
    return Classifier(
        file.name, run, about.num_classes, params, data, "onnxruntime", about.precision
    )
