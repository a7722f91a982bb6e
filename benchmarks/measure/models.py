"""The models that benchmarks time: from a name and a backend to a call.

A model is NAME, any of timm's registry, or NAME@FORM, which fixes the form of attention of a model
of this package. Weights are random: times, memory and counts do not depend on them.
"""

from __future__ import annotations

import difflib
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import autoformer_zoo
from autoformer_zoo.network.attention import check_form
from autoformer_zoo.network.complexity import count_macs
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.specialization.latency.timing import Call
from benchmarks.measure.engines import ENGINES, Engine, open_onnx
from benchmarks.measure.rows import Setting

Backend = Literal["eager", "compile", "cudagraphs", Engine]
TorchPrecision = Literal["fp32", "bf16", "fp16"]
RunPrecision = Literal[TorchPrecision, "int8", "int8-static"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What the exporter calls them.
ONNX_PRECISIONS: Mapping[str, Literal["fp32", "int8-dynamic", "int8-static"]] = MappingProxyType(
    {"fp32": "fp32", "bf16": "fp32", "int8": "int8-dynamic", "int8-static": "int8-static"}
)
NUM_INPUTS = 4  # different images in turn, so that none is always in the cache

DEIT_OF_SIZE = {
    "autoformer_tiny": "deit_tiny_patch16_224",
    "autoformer_small": "deit_small_patch16_224",
    "autoformer_base": "deit_base_patch16_224",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class BenchmarkModel:
    """A model to time, in fp32 on the CPU, and the size of its images."""

    name: str  # NAME or NAME@FORM
    module: nn.Module
    input_size: tuple[int, int, int]  # channels, height and width in pixels

    @property
    def input(self) -> str:
        """Height x width in pixels."""
        return f"{self.input_size[1]}x{self.input_size[2]}"


def split_spec(spec: str) -> tuple[str, str]:
    """Split NAME or NAME@FORM into the name and the form, "" for none.

    Raises:
        ValueError: the name or the form is unknown, or the model has no forms.
    """
    name, _, form = spec.partition("@")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"no model {name!r}; {hint}timm.list_models() lists all")
    if form and not is_zoo_model(name):
        raise ValueError(f"{spec}: only models of this package have forms of attention")
    if form:
        check_form(form, f"the form of {spec}")
    return name, form


def is_zoo_model(name: str) -> bool:
    """Return True for a model of this package, whose attention has several forms."""
    return name.split(".")[0] in autoformer_zoo.list_models()


def build(spec: str, img_size: int | None = None) -> BenchmarkModel:
    """Make the model of NAME or NAME@FORM, with random weights, in eval mode.

    Args:
        spec: the name.
        img_size: input side in pixels; the model's own if None.

    Raises:
        ValueError: as `split_spec`, or the model refuses the size.
    """
    name, form = split_spec(spec)
    cfg = timm.models.get_pretrained_cfg(name)
    kwargs: dict[str, object] = {}
    if form:
        kwargs["attention"] = form
    if img_size is not None and cfg.fixed_input_size:
        kwargs["img_size"] = img_size
    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False, **kwargs).eval()
    channels, height, width = cfg.input_size
    return BenchmarkModel(spec, module, (channels, img_size or height, img_size or width))


def pairs_of(models: Sequence[str], baseline: str | None) -> list[tuple[str, str]]:
    """List which model is divided by which.

    Args:
        models: names of all competitors.
        baseline: the model to divide all others by. Without it each size of this package is divided
            by timm's DeiT of that size, and each model by its own `@explicit`, if both compete.
    """
    if baseline is not None:
        return [(model, baseline) for model in models if model != baseline]
    return [
        (model, other)
        for model in models
        for other in (DEIT_OF_SIZE.get(model, model), f"{model}@explicit")
        if other != model and other in models
    ]


def supports_precision(backend: Backend, precision: str) -> bool:
    """Return True if a backend is measured in a precision."""
    if backend == "openvino":
        return precision in ONNX_PRECISIONS
    if backend == "onnxruntime":
        return precision in ONNX_PRECISIONS and precision != "bf16"
    return precision in DTYPES


def supports_model(backend: Backend, spec: str) -> bool:
    """Return True if a model runs in a backend: the exporter chooses the form of attention."""
    return backend not in ENGINES or not split_spec(spec)[1]


def make_call(
    model: BenchmarkModel, backend: Backend, setting: Setting, device: str, folder: Path
) -> Call:
    """Return a call of the model on the next of a few batches; it has been called once already.

    Args:
        model: its module is moved to the device and the precision.
        backend: what runs it.
        setting: precision, batch and threads; the caller sets torch's number of threads.
        device: "cpu" or "cuda".
        folder: for the exported files.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (setting.batch, *model.input_size)
    images = [torch.randn(shape, generator=generator) for _ in range(NUM_INPUTS)]
    if backend == "onnxruntime" or backend == "openvino":
        path = onnx_file(model, setting.precision, folder)
        run = open_onnx(backend, path, setting.threads, setting.precision, setting.batch)
        arrays = itertools.cycle([image.numpy() for image in images])
        call: Call = lambda: run(next(arrays))  # noqa: E731
    else:
        call = _torch_call(model.module, backend, device, DTYPES[setting.precision], images)
    call()
    return call


def _torch_call(
    module: nn.Module, backend: Backend, device: str, dtype: torch.dtype, images: Sequence[Tensor]
) -> Call:
    run: Any = frozen(module.to(device, dtype))
    if backend != "eager":
        mode = "reduce-overhead" if backend == "cudagraphs" else None
        run = torch.compile(module, dynamic=False, mode=mode)
    inputs = itertools.cycle([image.to(device, dtype) for image in images])
    return lambda: run(next(inputs))


def frozen(module: nn.Module) -> nn.Module:
    """Return a model of this package frozen for the CPU, which is how it is fastest there."""
    if isinstance(module, AutoFormer) and module.pos_embed.device.type == "cpu":
        return autoformer_zoo.freeze(module)
    return module


def onnx_file(model: BenchmarkModel, precision: str, folder: Path) -> Path:
    """Return the model's ONNX file in a folder, exported at the first call.

    One file serves all batch sizes and numbers of threads: exporting takes longer than timing.
    """
    from autoformer_zoo.onnx.export import export_onnx

    of_weights = ONNX_PRECISIONS[precision]
    path = folder / f"{model.name.replace('/', '_')}-{model.input}-{of_weights}.onnx"
    if not path.exists():
        _log.info("exporting %s, %s, %s", model.name, model.input, of_weights)
        calibration = None
        if of_weights == "int8-static":  # times do not depend on the ranges, so any image sets them
            calibration = Image.effect_noise(model.input_size[:0:-1], sigma=64).convert("RGB")
        export_onnx(model.module, path, precision=of_weights, calibration=calibration)
    return path


def macs_of(model: BenchmarkModel) -> float:
    """Count the multiply-adds of one image: in closed form for this package, else by torch."""
    name, size = split_spec(model.name)[0], model.input_size
    if is_zoo_model(name):
        module: Any = model.module  # an AutoFormer
        form, patch = module.blocks[0].attn.form, module.patch_embed.patch_size
        return count_macs(module.cfg, size[1:], patch, module.num_classes, size[0], form)
    fixed = timm.models.get_pretrained_cfg(name).fixed_input_size
    sized = {"img_size": size[1:]} if fixed else {}
    with torch.device("meta"), torch.inference_mode():  # shapes alone, nothing is computed
        twin, image = timm.create_model(name, **sized).eval(), torch.zeros(1, *size)
        with FlopCounterMode(display=False) as counter:
            twin(image)
    return counter.get_total_flops() / 2
