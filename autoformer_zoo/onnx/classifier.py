"""OnnxClassifier: images to class names with onnxruntime, where torch and timm are not installed.

Needs numpy, Pillow and onnxruntime. All else is stored in the file's metadata (`metadata.py`).
Images are opened by `images.py`, as `predict.py` does, and prepared here as timm's evaluation
transform prepares them, bit by bit, so the answers are those of `predict`.
"""

from __future__ import annotations

import math
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoformer_zoo.classify.images import ImageLike, iter_images, trim
from autoformer_zoo.classify.predictions import Array, Prediction, iter_top_k, require_positive
from autoformer_zoo.onnx.metadata import PREFIX, OnnxMetadata

FILTERS = {name.lower(): Image.Resampling[name] for name in Image.Resampling.__members__}
_PLACE = re.compile(rb"[\x08\x00]location(?:\x12(?P<size>[\x80-\xff]*[\x00-\x7f]))?", re.DOTALL)
DAMAGED = "has damaged metadata"
EXPECTED = "3 numbers as mean, 3 above 0 as std, names as labels and crop_pct from 0.1 to 10"
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class OnnxClassifier:
    """A classifier from an ONNX file that `export_onnx` wrote.

    Args:
        path: the file.
        providers: onnxruntime's names of what may run it, the preferred one first; by default
            CUDA if it is installed, and the CPU.
        threads: of one operator on the CPU; onnxruntime's own choice by default.
        mean: of each channel, for another program's file, which does not record it; a file that
            does takes neither this argument nor those below.
        std: as mean.
        labels: names of the outputs, for such a file.
        interpolation: filter that resizes images, for such a file; bicubic by default.
        crop_pct: side of the crop over that of the resized image, for such a file; 0.875 by
            default.
        softmax: the outputs of such a file are probabilities, not logits.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or does not record how images are prepared, or an argument
            is refused.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        labels: Sequence[str] | None = None,
        interpolation: str | None = None,
        crop_pct: float | None = None,
        softmax: bool = False,
    ) -> None:
        self.path = Path(path)
        self.session = _open(self.path, providers, threads)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise ValueError(
                f"{path} has {len(inputs)} inputs and {len(outputs)} outputs; expected one each"
            )
        self._input = inputs[0]
        given = {
            **{"mean": mean, "std": std, "labels": labels},
            **{"interpolation": interpolation, "crop_pct": crop_pct, "softmax": softmax or None},
        }
        is_described = any(value is not None for value in given.values())
        fault = f"is described wrongly, expected {EXPECTED}" if is_described else DAMAGED
        try:
            properties = self.session.get_modelmeta().custom_metadata_map
            self.metadata = _description(properties, given, self._input.shape[2:])
            _check(self.metadata, self._input, outputs[0], fault)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from None
        except Exception as error:  # a damaged file may hold anything
            raise ValueError(f"{path} {fault}: {error}") from None

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the outputs, in their order."""
        return self.metadata.labels or ()

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        top_k: int = 5,
        batch_size: int = 32,
    ) -> list[list[Prediction]]:
        """Classify images, as `classify.predict.predict` does.

        Args:
            images: an image (path, PIL image or array), a folder, or an iterable of these.
            top_k: classes to return of each image, the most probable first.
            batch_size: images in memory at a time.

        Returns:
            For each image its `top_k` classes; a list of one for a single image.

        Raises:
            ValueError: an image or an argument is refused.
            FileNotFoundError: a path does not exist.
        """
        return list(self.iter_predictions(images, top_k, batch_size))

    def iter_predictions(
        self,
        images: ImageLike | Iterable[ImageLike],
        top_k: int = 5,
        batch_size: int = 32,
        skip_unreadable: bool = False,
    ) -> Iterator[list[Prediction]]:
        """Classify images one batch at a time, as `classify.predict.iter_predictions` does."""
        require_positive("top_k", top_k)
        require_positive("batch_size", batch_size)
        decoded = iter_images(images, skip_unreadable)
        inputs = ((name, self.prepare(image)) for name, image in decoded)
        return iter_top_k(inputs, self._probabilities, self.labels, top_k, batch_size)

    def prepare(self, image: Image.Image) -> Array:
        """Turn an RGB image into one input: (3, height, width), or its pixels.

        Args:
            image: of mode RGB, as `images.read_image` returns it.
        """
        if self.metadata.preprocess:
            is_whole = self.metadata.crop_mode == "squash"  # nothing of the image is cropped
            return np.asarray(image if is_whole else trim(image))  # (height, width, 3) uint8
        return prepare(image, self.metadata).astype(DTYPES[self._input.type], copy=False)

    def run(self, batch: Array) -> Array:
        """Run the network on a batch.

        Args:
            batch: (B, 3, height, width), normalised; or, if the file prepares images itself,
                (B, height, width, 3) of uint8.

        Returns:
            (B, classes): logits, or probabilities if the file was exported with softmax.

        Raises:
            ValueError: the batch has another shape or type, or onnxruntime fails.
        """
        fixed = self._input.shape[0]
        try:
            if not isinstance(fixed, int) or len(batch) == fixed:
                return self._run(batch)
            parts = [batch[start : start + fixed] for start in range(0, len(batch), fixed)]
            return np.concatenate([self._run(_filled(part, fixed))[: len(part)] for part in parts])
        except Exception as error:  # the types that onnxruntime raises are of a private module
            raise ValueError(f"{self.path} cannot be run: {_one_line(error)}") from None

    def _run(self, batch: Array) -> Array:
        outputs: list[Array] = self.session.run(None, {self._input.name: batch})
        return outputs[0]

    def _probabilities(self, batch: Array) -> Array:
        outputs = self.run(batch).astype(np.float32)
        if self.metadata.softmax:
            return outputs
        powers = np.exp(outputs - outputs.max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True))


def prepare(image: Image.Image, metadata: OnnxMetadata) -> NDArray[np.float32]:
    """Resize, crop and normalise as timm's evaluation transform: (3, height, width).

    Args:
        image: of mode RGB.
        metadata: the file's.

    Source: timm 1.0, timm/data/transforms_factory.py (transforms_imagenet_eval, crop modes center
    and squash).
    """
    height, width = metadata.input_size
    if metadata.crop_mode == "squash":
        rows, columns = (math.floor(side / metadata.crop_pct) for side in (height, width))
    else:
        image = trim(image)
        sides = (image.height, image.width)
        rows, columns = resized_size(sides, (height, width), metadata.crop_pct)
    image = image.resize((columns, rows), FILTERS[metadata.interpolation])
    top, left = round((rows - height) / 2), round((columns - width) / 2)
    image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image).astype(np.float32) / np.float32(255)
    mean, std = (np.asarray(values, np.float32) for values in (metadata.mean, metadata.std))
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))


def resized_size(
    image: tuple[int, int], target: tuple[int, int], crop_pct: float
) -> tuple[int, int]:
    """Return the height and width to which timm resizes an image before it crops the centre.

    Args:
        image: its height and width.
        target: those of the crop.
        crop_pct: side of the crop over that of the resized image.
    """
    scaled = [math.floor(side / crop_pct) for side in target]
    if scaled[0] != scaled[1]:
        ratio = min(given / wanted for given, wanted in zip(image, scaled, strict=True))
        return round(image[0] / ratio), round(image[1] / ratio)
    short, long = min(image), max(image)
    longer = int(scaled[0] * long / short)
    return (longer, scaled[0]) if image[0] > image[1] else (scaled[0], longer)


def _open(path: Path, providers: Sequence[str] | None, threads: int | None) -> Any:
    import onnxruntime

    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected one that export_onnx wrote")
    installed = onnxruntime.get_available_providers()
    if isinstance(providers, str):
        raise ValueError(f"providers is {providers!r}; expected a list of names")
    if providers is None:
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in wanted if name in installed]
    if missing := [name for name in providers if name not in installed]:
        raise ValueError(
            f"{', '.join(missing)} is not installed; this onnxruntime has {', '.join(installed)}"
        )
    _check_places(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    if threads is not None:
        require_positive("threads", threads)
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # the types that it raises are of a private module
        raise ValueError(f"{path} cannot be run: {_one_line(error)}; export it again") from None


def _check_places(path: Path) -> None:
    """Check that weights outside a file are in files beside it.

    onnxruntime 1.23 and older read whatever file a network names. The graph is not parsed: `onnx`
    may not be installed. In protobuf a place is the text "location", its length before it, and then
    a length and the place.

    Raises:
        ValueError: they are elsewhere.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            return  # an empty file cannot be mapped
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for found in _PLACE.finditer(content):
                size = sum((b & 0x7F) << 7 * i for i, b in enumerate(found["size"] or b"\0"))
                place = os.fsdecode(content[found.end() : found.end() + size])
                beside = path.parent / place
                if not size or Path(place).name != place or beside.is_symlink():
                    raise ValueError(
                        f"{path} cannot be run: its external data is in {place!r}; "
                        "expected a file in the same folder"
                    )


def _description(
    properties: Mapping[str, str], given: Mapping[str, Any], sides: Sequence[Any]
) -> OnnxMetadata:
    """Return what a file records of itself, or what the caller says of one that records nothing.

    Raises:
        ValueError: the file records what is given, or something is missing or damaged.
    """
    needed = ("mean", "std", "labels")
    given = {
        key: tuple(value) if key in needed else value
        for key, value in given.items()
        if value is not None
    }
    if any(key.startswith(PREFIX) for key in properties):
        recorded = OnnxMetadata.from_properties(properties)
        known = given if recorded.mean is not None else {"softmax"} & set(given)
        if known:
            raise ValueError(f"records how it is to be used: leave out {', '.join(known)}")
        return replace(recorded, **given)
    if missing := [key for key in needed if key not in given]:
        raise ValueError(f"has no metadata of autoformer_zoo: give {', '.join(missing)}")
    values: dict[str, Any] = {
        "input_size": tuple(sides),
        "num_classes": len(given["labels"]),
        **{"interpolation": "bicubic", "crop_pct": 0.875, "softmax": False},
        **given,
    }
    return OnnxMetadata(**values, precision="unknown", preprocess=False)


def _check(metadata: OnnxMetadata, given: Any, output: Any, fault: str) -> None:
    """Compare the description with the network's input and output.

    Args:
        metadata: the description.
        given: the network's input.
        output: of the network.
        fault: what to say of values that no description can have.

    Raises:
        ValueError: they contradict each other, or something is missing or damaged.
    """
    if metadata.mean is None or metadata.std is None or metadata.labels is None:
        raise ValueError(
            "does not record how images are normalised: its model had no pretrained_cfg; describe "
            "it with mean, std and labels"
        )
    size = [3, *metadata.input_size]
    fits = given.type == "tensor(uint8)" if metadata.preprocess else given.shape[1:] == size
    if len(given.shape) != 4 or not fits or not all(isinstance(side, int) for side in size):
        raise ValueError(f"takes {given.type} of shape {given.shape}; expected a batch of {size}")
    classes = output.shape[-1]
    if isinstance(classes, int) and classes != len(metadata.labels):
        raise ValueError(f"has {classes} outputs, and {len(metadata.labels)} labels were given")
    if metadata.interpolation not in FILTERS:
        known = ", ".join(FILTERS)
        raise ValueError(f"interpolation is {metadata.interpolation!r}; expected one of {known}")
    mean, std = np.asarray(metadata.mean), np.asarray(metadata.std)
    is_sound = mean.shape == std.shape == (3,) and np.isfinite(mean).all() and (std > 0).all()
    is_sound = is_sound and metadata.crop_mode in ("center", "squash")
    if not is_sound or not 0.1 <= metadata.crop_pct <= 10:  # less would resize to gigabytes
        crop = (metadata.crop_mode, metadata.crop_pct)
        raise ValueError(f"{fault}: {mean}, {std}, {crop}")


def _filled(batch: Array, length: int) -> Array:
    missing = length - len(batch)
    return np.pad(batch, [(0, missing)] + [(0, 0)] * (batch.ndim - 1))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
