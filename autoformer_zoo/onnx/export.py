"""export_onnx: a classifier as one ONNX file, self-describing and verified against PyTorch.

Made for AutoFormer, whose attention is rewritten for the grid at hand (`graph.py`); any other timm
classifier is exported as it is. torch's own exporter makes the graph, `check.py` compares,
`metadata.py` says what is stored in the file. `classifier.py` runs it, without torch or this.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import resolve_model_data_config
from timm.utils import unwrap_model
from torch import Tensor, nn

from autoformer_zoo import __version__
from autoformer_zoo.classify.images import ImageLike, iter_inputs, read_image
from autoformer_zoo.classify.predict import class_names, input_size
from autoformer_zoo.classify.predictions import require_positive
from autoformer_zoo.network.vit import AutoFormer, whole_patches
from autoformer_zoo.onnx.check import (
    CHECK_BATCHES,
    Agreement,
    Array,
    OnnxReport,
    compare,
    made_images,
    made_inputs,
)
from autoformer_zoo.onnx.classifier import prepare
from autoformer_zoo.onnx.graph import rewrite_for_graph
from autoformer_zoo.onnx.metadata import NEWEST_OPSET, OLDEST_OPSET, OnnxMetadata, Precision
from autoformer_zoo.onnx.preprocess import prepend_preprocessing
from autoformer_zoo.onnx.quantize import quantize
from autoformer_zoo.weights.files import check_output

if TYPE_CHECKING:
    import onnx

MAX_BATCH = 2**16  # torch 2.7 wants an end of the dynamic batch; the file has none
MAX_CALIBRATION = 256  # images; ranges hardly move after the first hundred
INPUT = "pixel_values"  # names that transformers.js and optimum look for
LOGITS, PROBABILITIES = "logits", "probabilities"

_logger = logging.getLogger(__name__)


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    img_size: int | tuple[int, int] | None = None,
    batch_size: int | None = None,
    opset: int = OLDEST_OPSET,
    precision: Precision = "fp32",
    calibration: ImageLike | Sequence[ImageLike] | None = None,
    preprocess: bool = False,
    softmax: bool = False,
) -> OnnxReport:
    """Write a classifier as an ONNX file, and compare the file with the network in PyTorch.

    Args:
        model: an AutoFormer, or another timm classifier; left as it is.
        path: the file to write, ending in .onnx; an existing one is replaced.
        img_size: input side, or (height, width), in pixels; the model's by default.
        batch_size: the only batch size that the file takes; any by default.
        opset: version of the ONNX operator set, 18 to 22.
        precision: number format of the weights. "int8-static" needs `calibration`.
        calibration: representative images, or a folder of them. Of more than 256, as many are
            used, spread evenly over all: a folder of class folders is sorted by class.
        preprocess: include resizing, cropping and normalising: the file then takes uint8 RGB
            images (B, height, width, 3) of any size, one size a batch.
        softmax: include softmax: the file then returns probabilities.

    Returns:
        What was written, and how near it is to PyTorch.

    Raises:
        ValueError: an argument or the model is refused, or the file differs too much from PyTorch.
            Nothing is left behind, and what was at `path` before is still there.
    """
    out = Path(path)
    check_output(out, suffixes=(".onnx",))
    _check_choices(precision, opset, batch_size, calibration is not None)
    model = unwrap_model(model)
    networks = _prepare(model, img_size, softmax, preprocess or calibration is not None)
    metadata = _describe(model, networks, precision, preprocess, softmax)
    calibration_inputs = _calibration_inputs(calibration, metadata)

    _logger.info("exporting the graph, which takes about half a minute")
    with _quiet():
        proto = _to_proto(networks, batch_size, opset, half=precision == "fp16")
        if precision in ("int8-dynamic", "int8-static"):
            proto = quantize(proto, calibration_inputs)
        if preprocess:
            proto = prepend_preprocessing(proto, metadata, batch_size)
    _logger.info("comparing the file with PyTorch")
    batches = CHECK_BATCHES if batch_size is None else (batch_size,)
    with tempfile.TemporaryDirectory(prefix=f".{out.stem}-", dir=out.parent) as folder:
        work = Path(folder) / out.name
        _write(proto, metadata, work)
        agreement = _compare(work, networks, metadata, batches)
        _write(proto, replace(metadata, checked=asdict(agreement)), work)
        os.replace(work, out)
    return OnnxReport(
        **asdict(agreement),
        path=str(out),
        size_bytes=out.stat().st_size,
        params=sum(parameter.numel() for parameter in model.parameters()),
        precision=precision,
        opset=opset,
    )


def export_graph(
    model: nn.Module, precision: Literal["fp32", "int8-dynamic"] = "fp32"
) -> onnx.ModelProto:
    """Return the graph that `export_onnx` writes with its default choices, unchecked.

    Args:
        model: a classifier.
        precision: of the weights.
    """
    import onnx

    networks = _prepare(model, None, softmax=False, of_images=False)
    with _quiet():
        proto = _to_proto(networks, None, OLDEST_OPSET, half=False)
        if precision == "int8-dynamic":
            proto = quantize(proto)
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import, True)
    return proto


def _check_choices(precision: str, opset: int, batch_size: int | None, is_calibrated: bool) -> None:
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}; expected one of {get_args(Precision)}")
    if opset not in range(OLDEST_OPSET, NEWEST_OPSET + 1):
        raise ValueError(f"opset is {opset!r}; expected {OLDEST_OPSET} to {NEWEST_OPSET}")
    if batch_size is not None:
        require_positive("batch_size", batch_size)
    if (precision == "int8-static") != is_calibrated:
        raise ValueError(
            "precision int8-static needs calibration images, and no other precision uses any"
        )


@dataclass(frozen=True, slots=True)
class _Networks:
    """The classifier in PyTorch, and the same rewritten for the graph; copies, in eval mode."""

    reference: nn.Module
    exported: nn.Module
    input_size: tuple[int, int, int]  # channels, height, width


def _prepare(
    model: nn.Module, img_size: int | tuple[int, int] | None, softmax: bool, of_images: bool
) -> _Networks:
    """Copy the classifier, in eval mode and at its size, and rewrite the copy for the graph."""
    if not getattr(model, "num_classes", 0):
        raise ValueError("the model has no classifier (num_classes=0); make it with one")
    model = copy.deepcopy(model).float().cpu().eval()
    if img_size is not None:
        _resize(model, img_size)
    channels = getattr(model, "in_chans", None)
    channels = int(channels or resolve_model_data_config(model)["input_size"][0])
    if of_images and channels != 3:
        raise ValueError(
            f"the model takes {channels} channels; preprocessing and calibration need 3, RGB"
        )
    exported = rewrite_for_graph(model)
    # An AutoFormer's graph is for one grid, also if the network takes several.
    sides = model.patch_embed.img_size if isinstance(model, AutoFormer) else input_size(model)
    size = (channels, *sides)
    if softmax:
        return _Networks(_WithSoftmax(model), _WithSoftmax(exported), size)
    return _Networks(model, exported, size)


class _WithSoftmax(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits.softmax(-1)


def _resize(model: Any, img_size: int | tuple[int, int]) -> None:
    if not hasattr(model, "set_input_size"):
        raise ValueError(
            f"img_size={img_size} cannot be set on a {type(model).__name__}; make it of that size"
        )
    model.set_input_size(img_size=whole_patches(img_size, model.patch_embed.patch_size))


def _describe(
    model: Any, networks: _Networks, precision: str, preprocess: bool, softmax: bool
) -> OnnxMetadata:
    """Gather what the file says about itself; without a `pretrained_cfg`, that is less."""
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    config = resolve_model_data_config(model)
    if config["crop_mode"] not in ("center", "squash"):
        raise ValueError(f"crop mode {config['crop_mode']!r} is unknown; expected center or squash")
    notes = cfg.get("notes") or ()
    notes = (notes,) if isinstance(notes, str) else tuple(notes)
    origin = (cfg.get("url"), cfg.get("origin_url"), *notes)
    name = ".".join(filter(None, (cfg.get("architecture"), cfg.get("tag"))))
    return OnnxMetadata(
        input_size=networks.input_size[1:],
        num_classes=int(model.num_classes),
        mean=tuple(config["mean"]) if cfg else None,
        std=tuple(config["std"]) if cfg else None,
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        labels=class_names(model) if cfg else None,
        precision=precision,
        preprocess=preprocess,
        softmax=softmax,
        subnet=model.cfg.to_dict() if isinstance(model, AutoFormer) else None,
        name=name or type(model).__name__,
        origin="; ".join(str(text) for text in origin if text),
        license=cfg.get("license") or "unknown",
        package_version=__version__,
    )


def _to_proto(
    networks: _Networks, batch_size: int | None, opset: int, half: bool
) -> onnx.ModelProto:
    """Export with torch.onnx, without node metadata, which holds paths of this machine."""
    from onnx_ir.passes import common

    example = torch.zeros(batch_size or 2, *networks.input_size)
    shapes = None if batch_size else ({0: torch.export.Dim("batch", max=MAX_BATCH)},)
    program: Any = torch.onnx.export(  # None only if a path is given
        _HalfInside(networks.exported) if half else networks.exported,
        (example,),
        dynamo=True,
        verbose=False,
        opset_version=opset,
        dynamic_shapes=shapes,
        input_names=[INPUT],
        output_names=[PROBABILITIES if type(networks.exported) is _WithSoftmax else LOGITS],
    )
    common.ClearMetadataAndDocStringPass()(program.model)
    common.DeduplicateInitializersPass(size_limit=2**31)(program.model)
    proto: onnx.ModelProto = program.model_proto
    return proto


class _HalfInside(nn.Module):
    """A network in fp16 between inputs and outputs in fp32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).half()

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.model(images.half())
        return outputs.float()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress, advice and warnings of exporter and quantizer from the caller's terminal."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        disabled = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(disabled)


def _calibration_inputs(
    calibration: ImageLike | Sequence[ImageLike] | None, metadata: OnnxMetadata
) -> Array | None:
    if calibration is None:
        return None
    if metadata.mean is None:
        raise ValueError(
            "calibration images cannot be normalised: the model has no pretrained_cfg; make it "
            "with create_model, or set model.pretrained_cfg"
        )
    entries = [entry for _, entry in iter_inputs(calibration)]
    if not entries:
        raise ValueError("calibration holds no image; expected some hundred of them")
    count = min(len(entries), MAX_CALIBRATION)
    _logger.info("calibrating with %d of %d images", count, len(entries))
    chosen = (entries[i * len(entries) // count] for i in range(count))
    return np.stack([prepare(read_image(entry), metadata) for entry in chosen])


def _write(proto: onnx.ModelProto, metadata: OnnxMetadata, path: Path) -> None:
    import onnx

    # What the operators need, not what this onnx knows: older runtimes refuse newer numbers.
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import, True)
    onnx.helper.set_model_props(proto, metadata.to_properties())
    proto.producer_name, proto.producer_version = "autoformer_zoo", __version__
    onnx.save(proto, path)
    onnx.checker.check_model(str(path), full_check=True)  # with shape inference


def _compare(
    path: Path, networks: _Networks, metadata: OnnxMetadata, batches: Sequence[int]
) -> Agreement:
    """Run the file and the network in PyTorch on the same inputs."""
    channels, height, width = networks.input_size
    given: Sequence[NDArray[Any]]
    if metadata.preprocess:
        given = [made_images(batch, seed=batch) for batch in batches]
        prepared = [
            np.stack([prepare(Image.fromarray(image), metadata) for image in batch])
            for batch in given
        ]
    else:
        prepared = [made_inputs(n, (height, width), channels, seed=n) for n in batches]
        given = prepared

    def reference(images: Array) -> Array:
        with torch.no_grad():
            outputs: Array = networks.reference(torch.from_numpy(images)).numpy()
        return outputs

    return compare(path, reference, given, prepared, metadata)
