"""Who takes part in a benchmark: from a model's name and a backend to something to run.

A model is NAME, any of timm's registry, or NAME@FORM, which fixes the form of attention of a model
of this package. Weights are random: times, memory and counts do not depend on them. Measures
nothing; `latency.py` and `pareto.py` do.
"""

from __future__ import annotations

import difflib
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import autoformer_zoo
from autoformer_zoo.network.attention import AttentionForm, check_form
from autoformer_zoo.network.complexity import count_macs
from benchmarks.measure.onnx_sessions import make_session
from benchmarks.measure.rows import Setting

Backend = Literal["eager", "compile", "cudagraphs", "onnxruntime"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ONNX_PRECISIONS = ("fp32", "int8")
NUM_INPUTS = 4  # different images in turn, so that none is always in the cache

DEIT_OF_SIZE = {
    "autoformer_tiny": "deit_tiny_patch16_224",
    "autoformer_small": "deit_small_patch16_224",
    "autoformer_base": "deit_base_patch16_224",
}


@dataclass(frozen=True, slots=True, eq=False)
class Competitor:
    """A model that takes part: what it is and what it eats; in fp32 on the CPU."""

    name: str
    module: nn.Module
    input_size: tuple[int, int, int]

    @property
    def input(self) -> str:
        """Height x width in pixels."""
        return f"{self.input_size[1]}x{self.input_size[2]}"


@dataclass(frozen=True, slots=True)
class Track:
    """Where competitors run, and what they share while they do."""

    device: str
    seed: int
    files: OnnxFiles = field(compare=False)


def split_spec(spec: str) -> tuple[str, str]:
    """Split NAME or NAME@FORM into the name and the form, "" for none.

    Raises:
        ValueError: the name or the form is unknown, or a form is asked of a model without forms.
    """
    name, _, form = spec.partition("@")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"no model {name!r}; {hint}timm.list_models() lists all")
    if form and not has_forms(name):
        raise ValueError(f"{spec}: only models of this package have forms of attention")
    if form:
        check_form(form, f"the form of {spec}")
    return name, form


def has_forms(name: str) -> bool:
    """Tell whether a model is of this package, whose attention has several forms."""
    return name.split(".")[0] in autoformer_zoo.list_models()


def build(
    spec: str, img_size: int | None = None, attention: AttentionForm = "auto", seed: int = 0
) -> Competitor:
    """Make the model of NAME or NAME@FORM, with random weights, in eval mode.

    Args:
        spec: the name.
        img_size: input side in pixels; the model's own where None.
        attention: form of this package's models whose name fixes none.
        seed: of the weights.

    Raises:
        ValueError: as `split_spec`, or the model refuses the size.
    """
    name, form = split_spec(spec)
    cfg = timm.models.get_pretrained_cfg(name)
    kwargs: dict[str, object] = {}
    if has_forms(name):
        kwargs["attention"] = form or attention
    if img_size is not None and cfg.fixed_input_size:
        kwargs["img_size"] = img_size
    torch.manual_seed(seed)
    module = timm.create_model(name, pretrained=False, **kwargs).eval()
    channels, height, width = cfg.input_size
    return Competitor(spec, module, (channels, img_size or height, img_size or width))


def pairs_of(models: Sequence[str], baseline: str | None) -> list[tuple[str, str]]:
    """List which model is divided by which.

    Args:
        models: names of all competitors.
        baseline: the one to divide all others by. Without it each size of this package is divided
            by timm's DeiT of that size, and each model by its own `@explicit`, where they compete.
    """
    if baseline is not None:
        return [(model, baseline) for model in models if model != baseline]
    return [
        (model, other)
        for model in models
        for other in (DEIT_OF_SIZE.get(model, model), f"{model}@explicit")
        if other != model and other in models
    ]


def runs_in(backend: Backend, precision: Precision) -> bool:
    """Tell whether a backend is measured in a precision."""
    return precision in (ONNX_PRECISIONS if backend == "onnxruntime" else DTYPES)


def takes_part(spec: str, backend: Backend) -> bool:
    """Tell whether a model runs in a backend: the exporter chooses the form of attention itself."""
    return backend != "onnxruntime" or not split_spec(spec)[1]


def make_run(
    competitor: Competitor, backend: Backend, setting: Setting, track: Track
) -> Callable[[], object]:
    """Return a call of the model on the next of a few batches; it has run once already."""
    generator = torch.Generator().manual_seed(track.seed)
    shape = (setting.batch, *competitor.input_size)
    images = [torch.randn(shape, generator=generator) for _ in range(NUM_INPUTS)]
    make = _onnx_run if backend == "onnxruntime" else _torch_run
    run = make(competitor, backend, setting, track, images)
    run()
    return run


def _torch_run(
    competitor: Competitor,
    backend: Backend,
    setting: Setting,
    track: Track,
    images: Sequence[Tensor],
) -> Callable[[], object]:
    dtype = DTYPES[setting.precision]
    module: Callable[[Tensor], Tensor] = competitor.module.to(track.device, dtype)
    if backend != "eager":
        mode = "reduce-overhead" if backend == "cudagraphs" else None
        module = torch.compile(competitor.module, dynamic=False, mode=mode)
    inputs = itertools.cycle([image.to(track.device, dtype) for image in images])
    return lambda: module(next(inputs))


def _onnx_run(
    competitor: Competitor,
    backend: Backend,
    setting: Setting,
    track: Track,
    images: Sequence[Tensor],
) -> Callable[[], object]:
    path = track.files.path(competitor.name, competitor.module, competitor.input, setting.precision)
    session = make_session(path, setting.threads)
    name = session.get_inputs()[0].name
    inputs = itertools.cycle([image.numpy() for image in images])
    return lambda: session.run(None, {name: next(inputs)})


def macs_of(competitor: Competitor) -> float:
    """Count the multiply-adds of one image: in closed form for this package, else by torch."""
    name, size = split_spec(competitor.name)[0], competitor.input_size
    if has_forms(name):
        model: Any = competitor.module  # an AutoFormer
        form, patch = model.blocks[0].attn.form, model.patch_embed.patch_size
        return count_macs(model.cfg, size[1:], patch, model.num_classes, size[0], form)
    fixed = timm.models.get_pretrained_cfg(name).fixed_input_size
    sized = {"img_size": size[1:]} if fixed else {}
    with torch.device("meta"), torch.inference_mode():  # shapes alone, no sums
        twin, image = timm.create_model(name, **sized).eval(), torch.zeros(1, *size)
        with FlopCounterMode(display=False) as counter:
            twin(image)
    return counter.get_total_flops() / 2


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Have torch use so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Dynamic quantization needs no images to calibrate with.
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
        from autoformer_zoo.onnx.export import export_onnx

        path = self._folder / f"{name.replace('/', '_')}-{size}-{precision}.onnx"
        if not path.exists():
            _log.info("exporting %s, %s, %s", name, size, precision)
            export_onnx(module, path, precision=PRECISIONS[precision])
        return path
