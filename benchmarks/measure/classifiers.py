"""What can be scored: a model's name, a file of weights, an ONNX file, or a subnet of a supernet.

    NAME            weights of timm's or this package's registry
    NAME=FILE       weights from a file, images prepared as for that name; of a supernet's file
                    the name's subnet is cut
    FILE            one subnet's file of this package, as autoformer_subnet=FILE
    FILE.onnx       in onnxruntime, with the preprocessing that the file describes

A file of this package says its sizes and classes, but not how images are prepared. Where no name
tells, it is as for the model here with its patch size and number of classes: nano's, or ImageNet's.
Weights that cannot be had are a `MissingWeightsError`, and never random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from autoformer_zoo import create_model
from autoformer_zoo.autoformer import build_static
from autoformer_zoo.published import MODELS, SPACES
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import (
    CheckpointError,
    SubnetWeights,
    open_checkpoint,
)
from benchmarks.measure.models import DTYPES, is_zoo_model, make_session, split_spec

ANY_SUBNET = "autoformer_subnet"  # the name that says nothing about the file
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
PREPARATION = ("interpolation", "mean", "std", "crop_pct", "crop_mode")


class MissingWeightsError(Exception):
    """The weights of a model cannot be had; the text says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """Something that turns normalised images into one score a class."""

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
    name, file = split_file(spec)
    if file is None:
        return of_model(spec, _open_pretrained(name), device, precision)
    if not is_zoo_model(name):
        return of_model(spec, _open_timm_file(name, file), device, precision)
    checkpoint = open_checkpoint(file)
    if (subnet := _subnet_of(name)) is None and checkpoint.is_supernet:
        raise ValueError(
            f"{file} holds a supernet: give NAME={file} with the model whose subnet is to be cut, "
            f"or --supernet {file} with --subnets"
        )
    with _naming(spec):
        # A file of one subnet is taken as it is; only what a supernet's is cut to needs a name.
        weights = checkpoint.subnet(subnet if checkpoint.is_supernet else None)
        return _of_weights(spec, name, weights, device, precision)


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
    supernet: str, subnets: Sequence[SubnetConfig], device: str, precision: str
) -> list[Callable[[], Classifier]]:
    """Name the subnets of a supernet; each is cut when it is asked for.

    Args:
        supernet: NAME, whose own supernet it is, NAME=FILE or FILE.
        subnets: what to cut.
        device: as in `open_classifier`.
        precision: as in `open_classifier`.

    Raises:
        ValueError: there is no such supernet.
        CheckpointError: the file is refused.
    """
    name, file = split_file(supernet)
    if not is_zoo_model(name):
        raise ValueError(f"{name} has no supernet: expected a model of this package")
    checkpoint = None if file is None else open_checkpoint(file)
    if checkpoint is not None and not checkpoint.is_supernet:
        raise ValueError(f"{file} holds one subnet, no supernet: score it by --models {supernet}")

    def opener(index: int, subnet: SubnetConfig) -> Callable[[], Classifier]:
        title = f"{name}[{index}]"

        def open_one() -> Classifier:
            with _naming(title):
                if checkpoint is not None:
                    weights = checkpoint.subnet(subnet)
                    return _of_weights(title, name, weights, device, precision)
                made = _with_weights(
                    name, lambda: create_model(name, pretrained=True, subnet=subnet)
                )
                return of_model(title, made, device, precision)

        return open_one

    return [opener(index, subnet) for index, subnet in enumerate(subnets)]


def of_model(name: str, model: nn.Module, device: str, precision: str) -> Classifier:
    """Make a classifier of a timm model."""
    dtype = DTYPES[precision]
    module: Any = model.eval().to(device, dtype)

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            scores: Tensor = module(images.to(device, dtype))
        return scores.float().cpu()

    params = sum(parameter.numel() for parameter in module.parameters())
    data = resolve_model_data_config(module)
    return Classifier(name, run, module.num_classes, params, data, "eager", precision)


def _of_weights(
    title: str, name: str, weights: SubnetWeights, device: str, precision: str
) -> Classifier:
    """Make a classifier of a file's weights: sizes are the file's, the preparation is the name's.

    Raises:
        ValueError: the file has no head, or neither name nor sizes tell the preparation.
    """
    if not weights.num_classes:
        raise ValueError("the file has no head, so nothing to score; expected a classifier's")
    made = of_model(title, build_static(weights), device, precision)
    cfg = timm.models.get_pretrained_cfg(_prepared_as(name, weights)).to_dict()
    prepared = {key: cfg[key] for key in PREPARATION if cfg.get(key) is not None}
    return replace(made, data={**made.data, **prepared})


def _prepared_as(name: str, weights: SubnetWeights) -> str:
    """Name the model for which images are prepared as for these weights."""
    if _subnet_of(name) is not None:
        return name
    sizes = weights.patch_size[0], weights.num_classes
    for model, spec in MODELS.items():
        if (SPACES[spec.space].patch_size, SPACES[spec.space].num_classes) == sizes:
            return model
    raise ValueError(
        f"the file is for {sizes[1]} classes with patches of {sizes[0]} px and does not say how "
        "images are prepared: give NAME=FILE, with the model whose preparation holds "
        "(autoformer_nano: as CIFAR-10, autoformer_tiny: as ImageNet)"
    )


def _subnet_of(name: str) -> SubnetConfig | None:
    """Return the subnet that a name of this package stands for, if it stands for one."""
    model = name.split(".")[0]
    return None if model == ANY_SUBNET else MODELS[model].subnet


@contextmanager
def _naming(title: str) -> Iterator[None]:
    """Put in front of an error what was opened, for there may be many."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{title}: {error}") from None


def _open_pretrained(name: str) -> nn.Module:
    cfg = timm.models.get_pretrained_cfg(name)
    if not is_zoo_model(name) and not (cfg and cfg.has_weights):  # timm would warn and go on
        raise MissingWeightsError(f"timm has no weights of {name}")
    return _with_weights(name, lambda: timm.create_model(name, pretrained=True))


def _with_weights(name: str, make: Callable[[], nn.Module]) -> nn.Module:
    """Call `make`, whatever stops a download being a `MissingWeightsError`."""
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


def _open_onnx(file: Path, threads: int) -> Classifier:
    import numpy as np
    import onnx

    from autoformer_zoo.onnx.metadata import OnnxMetadata

    if not file.is_file():
        raise ValueError(f"{file} does not exist; expected an ONNX file")
    session = make_session(file, threads)
    try:
        about = OnnxMetadata.from_properties(session.get_modelmeta().custom_metadata_map)
    except ValueError as error:
        raise ValueError(f"{file} {error}: export it with autoformer_zoo.export_onnx") from None
    if about.preprocess or about.mean is None or about.std is None:
        raise ValueError(f"{file} prepares images itself, or does not say how they are prepared")
    graph = onnx.load(file, load_external_data=False).graph
    params = sum(int(np.prod(each.dims)) for each in graph.initializer)
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.numpy()})[0])

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
