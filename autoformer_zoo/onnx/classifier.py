"""OnnxClassifier: images to names with onnxruntime, where neither torch nor timm is installed.

Needs numpy, Pillow and onnxruntime. All else stands in the file's metadata (`metadata.py`).
Images are opened by `images.py`, as `predict.py` does, and prepared here as timm's evaluation
transform prepares them, number by number, so the answers are those of `predict`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoformer_zoo.classify.images import ImageLike, iter_images
from autoformer_zoo.classify.predictions import Prediction, require_positive
from autoformer_zoo.onnx.metadata import OnnxMetadata

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}

Array = NDArray[Any]


class OnnxClassifier:
    """A classifier out of an ONNX file that `export_onnx` wrote.

    Args:
        path: the file.
        providers: onnxruntime's names of what may run it, the preferred one first; None takes
            CUDA where it is installed, and the CPU.
        threads: of one operator on the CPU; onnxruntime's own choice where None.
        mean: of each channel, for a file that does not say it: another program's.
        std: as mean.
        labels: names of the outputs, for such a file.
        interpolation: filter that resizes images, for such a file.
        crop_pct: side of the crop over that of the resized image, for such a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or does not say how images are prepared, or an argument
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
        interpolation: str = "bicubic",
        crop_pct: float = 0.875,
    ) -> None:
        self.path = Path(path)
        self.session = _open(self.path, providers, threads)
        [self._input, *others] = self.session.get_inputs()
        outputs = self.session.get_outputs()
        if others or len(outputs) != 1:
            raise ValueError(
                f"{path} has {1 + len(others)} inputs and {len(outputs)} outputs; expected one each"
            )
        properties = self.session.get_modelmeta().custom_metadata_map
        if None not in (mean, std, labels):
            given = (mean, std, labels, interpolation, crop_pct)
            self.metadata = _foreign_metadata(self.path, self._input, outputs[0], *given)
        else:
            self.metadata = _read_metadata(self.path, properties)
        self._on_cuda = "CUDAExecutionProvider" in self.session.get_providers()

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
        """Classify images, as `predict.predict` does.

        Args:
            images: a image (path, PIL image or array), a folder, or an iterable of these.
            top_k: answers a image, best first; all of them where there are fewer classes.
            batch_size: images in memory at a time.

        Returns:
            For each image its `top_k` answers; a list of one for a single image.

        Raises:
            ValueError: a image or an argument is refused.
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
        """Classify images one batch at a time, in constant memory.

        Args:
            images: as in `predict`.
            top_k: as in `predict`.
            batch_size: as in `predict`.
            skip_unreadable: log a warning for a image that cannot be read, and go on.

        Raises:
            ValueError: an argument is refused, at once; a image, when its turn comes.
            FileNotFoundError: a path does not exist, when its turn comes.
        """
        require_positive("top_k", top_k)
        require_positive("batch_size", batch_size)
        decoded = iter_images(images, skip_unreadable)
        inputs = ((name, self.prepare(image)) for name, image in decoded)
        return self._answers(inputs, min(top_k, len(self.labels)), batch_size)

    def prepare(self, image: Image.Image) -> Array:
        """Turn an RGB image into one input, (3, height, width), or its pixels where the file wants.

        Args:
            image: of mode RGB, as `images.read_image` returns it.
        """
        if self.metadata.preprocess:
            return np.asarray(image)  # (height, width, 3) uint8
        return prepare(image, self.metadata).astype(DTYPES[self._input.type], copy=False)

    def run(self, batch: Array) -> Array:
        """Run the network on a batch.

        Args:
            batch: (B, 3, height, width), normalised; or, where the file prepares images itself,
                (B, height, width, 3) of uint8.

        Returns:
            (B, classes): logits, or probabilities where the file was exported with softmax.

        Raises:
            ValueError: the batch has another shape or type.
        """
        self._check_batch(batch)
        fixed = self._input.shape[0]
        if not isinstance(fixed, int) or len(batch) == fixed:
            return self._run(batch)
        parts = [batch[start : start + fixed] for start in range(0, len(batch), fixed)]
        return np.concatenate([self._run(_filled(part, fixed))[: len(part)] for part in parts])

    def _run(self, batch: Array) -> Array:
        if not self._on_cuda:
            outputs: list[Array] = self.session.run(None, {self._input.name: batch})
            return outputs[0]
        binding = self.session.io_binding()
        binding.bind_cpu_input(self._input.name, np.ascontiguousarray(batch))
        binding.bind_output(self.session.get_outputs()[0].name)
        self.session.run_with_iobinding(binding)
        copied: list[Array] = binding.copy_outputs_to_cpu()
        return copied[0]

    def _check_batch(self, batch: Array) -> None:
        expected, dtype = self._input.shape, DTYPES[self._input.type]
        fits = batch.ndim == len(expected) and all(
            not isinstance(wanted, int) or wanted == given
            for wanted, given in zip(expected[1:], batch.shape[1:], strict=True)
        )
        if not fits or batch.dtype != dtype or not len(batch):
            shape = ", ".join(str(part) for part in expected)
            raise ValueError(
                f"the batch is {batch.dtype} of shape {batch.shape}; expected "
                f"{np.dtype(dtype)} of shape ({shape})"
            )

    def _answers(
        self, inputs: Iterator[tuple[str, Array]], top_k: int, batch_size: int
    ) -> Iterator[list[Prediction]]:
        while chunk := list(islice(inputs, batch_size)):
            # Images that the file prepares itself share a batch where they are of one size.
            for _, group in groupby(chunk, key=lambda item: item[1].shape):
                batch = list(group)
                outputs = self.run(np.stack([array for _, array in batch]))
                if not np.isfinite(outputs).all():
                    raise ValueError(
                        f"{self.path} gave NaN or infinity, {batch[0][0]} to {batch[-1][0]}"
                    )
                for (name, _), row in zip(batch, self._probabilities(outputs), strict=True):
                    best = np.argsort(-row, kind="stable")[:top_k].tolist()
                    yield [Prediction(name, self.labels[i], i, float(row[i])) for i in best]

    def _probabilities(self, outputs: Array) -> Array:
        outputs = outputs.astype(np.float32)
        if self.metadata.softmax:
            return outputs
        powers = np.exp(outputs - outputs.max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True))


def prepare(image: Image.Image, metadata: OnnxMetadata) -> NDArray[np.float32]:
    """Resize, crop and normalise as timm's evaluation transform: (3, height, width).

    Args:
        image: of mode RGB.
        metadata: the file's.

    Source: timm 1.0, timm/data/transforms_factory.py (transforms_imagenet_eval, crop mode center).
    """
    height, width = metadata.input_size
    rows, columns = resized_size((image.height, image.width), (height, width), metadata.crop_pct)
    image = image.resize((columns, rows), FILTERS[metadata.interpolation])
    top, left = round((rows - height) / 2), round((columns - width) / 2)
    image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image).astype(np.float32) / np.float32(255)
    mean, std = (np.asarray(values, np.float32) for values in (metadata.mean, metadata.std))
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))


def resized_size(
    image: tuple[int, int], target: tuple[int, int], crop_pct: float
) -> tuple[int, int]:
    """Return the height and width to which timm resizes a image before it crops.

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
        raise FileNotFoundError(f"{path} is no file; expected one that export_onnx wrote")
    installed = onnxruntime.get_available_providers()
    if providers is None:
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in wanted if name in installed]
    if missing := [name for name in providers if name not in installed]:
        raise ValueError(
            f"{', '.join(missing)} is not installed; this onnxruntime has {', '.join(installed)}"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: what it warns of is its own business
    if threads is not None:
        require_positive("threads", threads)
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # the types that it raises are of a private module
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be run: {reason}; export it anew") from None


def _read_metadata(path: Path, properties: dict[str, str]) -> OnnxMetadata:
    try:
        metadata = OnnxMetadata.from_properties(properties)
    except ValueError as error:
        raise ValueError(f"{path} {error}; give mean=, std= and labels=") from None
    if metadata.mean is None or metadata.std is None or metadata.labels is None:
        raise ValueError(
            f"{path} does not say how images are normalised: its model had no pretrained_cfg; "
            "give mean=, std= and labels="
        )
    return metadata


def _foreign_metadata(
    path: Path,
    given: Any,
    output: Any,
    mean: Any,
    std: Any,
    labels: Any,
    interpolation: str,
    crop_pct: float,
) -> OnnxMetadata:
    """Describe another program's file by what the caller says of it."""
    shape = given.shape
    sizes = [side for side in shape[2:] if isinstance(side, int)]
    if len(shape) != 4 or len(sizes) != 2 or given.type not in DTYPES:
        raise ValueError(f"{path} takes {given.type} of shape {shape}; expected (B, 3, 224, 224)")
    classes = output.shape[-1]
    if isinstance(classes, int) and classes != len(labels):
        raise ValueError(f"{path} has {classes} outputs, and {len(labels)} labels were given")
    if interpolation not in FILTERS:
        known = ", ".join(FILTERS)
        raise ValueError(f"interpolation is {interpolation!r}; expected one of {known}")
    return OnnxMetadata(
        input_size=(sizes[0], sizes[1]),
        num_classes=len(labels),
        mean=tuple(mean),
        std=tuple(std),
        interpolation=interpolation,
        crop_pct=crop_pct,
        labels=tuple(labels),
        precision="unknown",
        preprocess=False,
        softmax=False,
    )


def _filled(batch: Array, length: int) -> Array:
    missing = length - len(batch)
    return np.pad(batch, [(0, missing)] + [(0, 0)] * (batch.ndim - 1))
