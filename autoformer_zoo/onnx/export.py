"""export_onnx: a classifier as one ONNX file that says what it is and was held against torch.

Made for AutoFormer, whose attention is rewritten for the grid at hand (`graph.py`); any
other timm classifier is exported as it is. torch's own exporter makes the graph, `check.py`
compares, `metadata.py` says what stands in the file. Runs nothing in production: that is
`classifier.py`, which needs neither torch nor this.
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
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import resolve_model_data_config
from torch import Tensor, nn

import autoformer_zoo
from autoformer_zoo.classify.images import ImageLike, iter_images
from autoformer_zoo.classify.predict import class_names, input_size
from autoformer_zoo.network.vit import AutoFormer
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
from autoformer_zoo.onnx.metadata import OnnxMetadata
from autoformer_zoo.onnx.preprocess import prepend_preprocessing
from autoformer_zoo.onnx.quantize import quantize

if TYPE_CHECKING:
    import onnx

Precision = Literal["fp32", "fp16", "int8-dynamic", "int8-static"]
OLDEST, NEWEST = 18, 22  # the oldest that torch's exporter writes and antialiased Resize needs
LARGEST_BYTES = 2_000_000_000  # protobuf ends at 2 GiB; no AutoFormer comes near
MOST_BATCH = 2**16  # torch 2.7 wants an end; the file has none
MOST_CALIBRATION = 256  # images; ranges hardly move after the first hundred
INPUT, OUTPUT = "images", "logits"


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    img_size: int | tuple[int, int] | None = None,
    batch_size: int | None = None,
    opset: int = OLDEST,
    precision: Precision = "fp32",
    calibration: ImageLike | Sequence[ImageLike] | None = None,
    preprocess: bool = False,
    softmax: bool = False,
) -> OnnxReport:
    """Write a classifier as an ONNX file, and compare the file with the network in torch.

    Args:
        model: an AutoFormer, or another timm classifier; left as it is.
        path: the file to write, ending in .onnx; one that is there is replaced.
        img_size: input side, or (height, width), in pixels; the model's where None.
        batch_size: the only batch size that the file takes; any where None.
        opset: version of ONNX' operators.
        precision: of the weights. "int8-static" needs `calibration`.
        calibration: a folder of images, or images, that the network will see alike.
        preprocess: put resizing, cropping and normalising into the file: it then takes uint8 RGB
            images (B, height, width, 3) of any size, one size a batch.
        softmax: put softmax into the file: it then gives probabilities.

    Returns:
        What was written, and how near it is to torch.

    Raises:
        ValueError: an argument is refused, or the file differs too much from torch. Nothing is
            left behind, and what was at `path` before is still there.
    """
    out = _checked_path(path)
    _check_choices(precision, opset, batch_size)
    images = _calibration_images(precision, calibration)
    networks = _prepare(model, img_size, softmax, preprocess or images is not None)
    metadata = _describe(model, networks, precision, preprocess, softmax)
    proto = _to_proto(networks, batch_size, opset, half=precision == "fp16")
    if precision in ("int8-dynamic", "int8-static"):
        proto = quantize(proto, _calibration_inputs(images, metadata))
    if preprocess:
        proto = prepend_preprocessing(proto, metadata, batch_size)
    batches = CHECK_BATCHES if batch_size is None else (batch_size,)
    with tempfile.TemporaryDirectory(prefix=f".{out.stem}-", dir=out.parent) as folder:
        work = Path(folder) / out.name
        _write(proto, metadata, work)
        agreement = _compare(work, networks, metadata, batches)
        _write(proto, replace(metadata, checked=asdict(agreement)), work)
        os.replace(work, out)
    params = sum(parameter.numel() for parameter in model.parameters())
    return OnnxReport(
        path=str(out),
        size_bytes=out.stat().st_size,
        params=params,
        precision=precision,
        opset=opset,
        **asdict(agreement),
    )


@dataclass(frozen=True, slots=True)
class _Networks:
    """The classifier in torch, and the same rewritten for the graph; both copies, in eval mode."""

    reference: nn.Module
    exported: nn.Module
    input_size: tuple[int, int, int]  # channels, height, width


class _WithSoftmax(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits.softmax(-1)


def _prepare(
    model: nn.Module,
    img_size: int | tuple[int, int] | None,
    softmax: bool,
    of_images: bool,
) -> _Networks:
    """Copy the classifier, in eval mode and at its size, and write the copy for the graph."""
    if not getattr(model, "num_classes", 0):
        raise ValueError("the model has no classifier (num_classes=0); make it with one")
    params = sum(parameter.numel() for parameter in model.parameters())
    if 4 * params > LARGEST_BYTES:
        raise ValueError(
            f"the model has {params:,} parameters; one ONNX file holds at most 2 GB, "
            f"{LARGEST_BYTES // 4:,} of them"
        )
    model = copy.deepcopy(model).float().cpu().eval()
    if img_size is not None:
        _resize(model, img_size)
    size = (_in_chans(model), *input_size(model))
    if of_images and size[0] != 3:
        raise ValueError(
            f"the model takes {size[0]} channels; preprocess= and calibration= need 3, RGB"
        )
    exported = rewrite_for_graph(model)
    if softmax:
        return _Networks(_WithSoftmax(model), _WithSoftmax(exported), size)
    return _Networks(model, exported, size)


def _resize(model: Any, img_size: int | tuple[int, int]) -> None:
    if not hasattr(model, "set_input_size"):
        raise ValueError(
            f"img_size={img_size} cannot be set on a {type(model).__name__}; make it of that size"
        )
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    patch = model.patch_embed.patch_size
    if height < 1 or width < 1 or height % patch[0] or width % patch[1]:
        raise ValueError(
            f"img_size is {height} x {width}; expected multiples of the patch, "
            f"{patch[0]} x {patch[1]}"
        )
    model.set_input_size(img_size=(height, width))


def _checked_path(path: str | os.PathLike[str]) -> Path:
    out = Path(path)
    if out.suffix != ".onnx":
        raise ValueError(f"{out} is no name for the result; expected one that ends in .onnx")
    if not out.parent.is_dir():
        raise ValueError(f"the folder {out.parent} does not exist; make it first")
    if out.is_dir():
        raise ValueError(f"{out} is a folder; expected the name of a file")
    return out


def _check_choices(precision: str, opset: int, batch_size: int | None) -> None:
    if precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise ValueError(f"precision is {precision!r}; expected one of {known}")
    if isinstance(opset, bool) or not isinstance(opset, int) or not OLDEST <= opset <= NEWEST:
        raise ValueError(f"opset is {opset!r}; expected a whole number from {OLDEST} to {NEWEST}")
    if batch_size is not None and (
        isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1
    ):
        raise ValueError(
            f"batch_size is {batch_size!r}; expected a positive whole number, or None for any"
        )


def _in_chans(model: Any) -> int:
    channels = getattr(model, "in_chans", None)
    return int(channels or resolve_model_data_config(model)["input_size"][0])


def _calibration_images(
    precision: str, calibration: ImageLike | Sequence[ImageLike] | None
) -> list[Image.Image] | None:
    """Read the images that int8-static needs, and refuse them elsewhere."""
    if precision != "int8-static":
        if calibration is not None:
            raise ValueError(f"calibration= is for precision int8-static, not {precision}")
        return None
    if calibration is None:
        raise ValueError("precision int8-static needs calibration=, a folder of images")
    images = [image for _, image in islice(iter_images(calibration), MOST_CALIBRATION)]
    if not images:
        raise ValueError("calibration= holds no image; expected some hundred of them")
    return images


def _calibration_inputs(images: list[Image.Image] | None, metadata: OnnxMetadata) -> Array | None:
    if images is None:
        return None
    if metadata.mean is None:
        raise ValueError(
            "calibration images cannot be normalised: the model has no pretrained_cfg; make it "
            "with create_model, or set model.pretrained_cfg"
        )
    return np.stack([prepare(image, metadata) for image in images])


class _HalfInside(nn.Module):
    """A network in fp16 between inputs and outputs in fp32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).half()

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.model(images.half())
        return outputs.float()


def _to_proto(
    networks: _Networks, batch_size: int | None, opset: int, half: bool
) -> onnx.ModelProto:
    """Let torch write the graph, quietly, and drop what it notes of its own doing."""
    from onnx_ir.passes import common

    example = torch.zeros(batch_size or 2, *networks.input_size)
    shapes = None if batch_size else ({0: torch.export.Dim("batch", max=MOST_BATCH)},)
    with _quiet():
        program: Any = torch.onnx.export(  # None only where a path is given
            _HalfInside(networks.exported) if half else networks.exported,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            dynamic_shapes=shapes,
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
    common.ClearMetadataAndDocStringPass()(program.model)
    common.DeduplicateInitializersPass(size_limit=2**31)(program.model)
    proto: onnx.ModelProto = program.model_proto
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress, advice and warnings from the caller's terminal."""
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


def _describe(
    model: Any, networks: _Networks, precision: str, preprocess: bool, softmax: bool
) -> OnnxMetadata:
    """Gather what the file says of itself; a model without a `pretrained_cfg` knows less."""
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    config = resolve_model_data_config(model)
    return OnnxMetadata(
        input_size=networks.input_size[1:],
        num_classes=int(model.num_classes),
        mean=tuple(config["mean"]) if cfg else None,
        std=tuple(config["std"]) if cfg else None,
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        labels=class_names(model) if cfg else None,
        precision=precision,
        preprocess=preprocess,
        softmax=softmax,
        subnet=model.cfg.to_dict() if isinstance(model, AutoFormer) else None,
        name=_name(cfg) or type(model).__name__,
        origin="; ".join(
            str(text) for text in (cfg.get("url"), cfg.get("origin_url"), *_notes(cfg)) if text
        ),
        license=cfg.get("license") or "unknown",
        package_version=autoformer_zoo.__version__,
    )


def _name(cfg: Mapping[str, Any]) -> str:
    return ".".join(part for part in (cfg.get("architecture"), cfg.get("tag")) if part)


def _notes(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    notes = cfg.get("notes") or ()
    return (notes,) if isinstance(notes, str) else tuple(notes)


def _write(proto: onnx.ModelProto, metadata: OnnxMetadata, path: Path) -> None:
    import onnx

    # What the operators need, not what this onnx knows: older runtimes refuse newer numbers.
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import, True)
    onnx.helper.set_model_props(proto, metadata.to_properties())
    proto.producer_name, proto.producer_version = "autoformer_zoo", autoformer_zoo.__version__
    onnx.save(proto, path)
    onnx.checker.check_model(str(path), full_check=True)  # with shape inference


def _compare(
    path: Path, networks: _Networks, metadata: OnnxMetadata, batches: Sequence[int]
) -> Agreement:
    """Run the file and the network in torch on the same inputs."""
    channels, *size = networks.input_size
    given: Sequence[NDArray[Any]]
    if metadata.preprocess:
        given = [made_images(batch, seed=batch) for batch in batches]
        prepared = [
            np.stack([prepare(Image.fromarray(image), metadata) for image in batch])
            for batch in given
        ]
    else:
        prepared = [made_inputs(n, (size[0], size[1]), channels, seed=n) for n in batches]
        given = prepared

    def reference(images: Array) -> Array:
        with torch.no_grad():
            outputs: Array = networks.reference(torch.from_numpy(images)).numpy()
        return outputs

    return compare(path, reference, given, prepared, metadata)
