"""From probabilities to the best classes: shared by `predict.py` and `onnx/classifier.py`.

NumPy only: an ONNX file is run where torch is not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One predicted class of one image.

    Args:
        image: the image's path, or its kind and place in the list ("array 2").
        label: name of the class.
        index: index of the class among the model's outputs.
        probability: softmax over all outputs, from 0 to 1.
    """

    image: str
    label: str
    index: int
    probability: float


def iter_top_k(
    inputs: Iterator[tuple[str, Array]],
    probabilities: Callable[[Array], Array],
    labels: Sequence[str],
    top_k: int,
    batch_size: int,
) -> Iterator[list[Prediction]]:
    """Classify inputs one batch at a time, in constant memory.

    Args:
        inputs: names of images, and what the network takes of each.
        probabilities: the network: (B, ...) to (B, classes).
        labels: names of the classes.
        top_k: classes to return of each image; all if there are fewer.
        batch_size: inputs in memory at a time.

    Yields:
        The `top_k` best classes of each image, the most probable first.

    Raises:
        ValueError: the outputs are not one finite number a class.
    """
    for batch in _batches(inputs, batch_size):
        # An ONNX file that prepares images itself takes them in any size, one size a batch.
        for _, group in groupby(batch, key=lambda item: item[1].shape):
            names, arrays = zip(*group, strict=True)
            found = probabilities(np.stack(arrays))  # (B, classes)
            if found.shape != (len(names), len(labels)):
                raise ValueError(
                    f"the model returned {found.shape} for {len(names)} images; expected "
                    f"{(len(names), len(labels))}, one logit a class"
                )
            if not np.isfinite(found).all():
                raise ValueError(f"the model returned NaN or infinity, {names[0]} to {names[-1]}")
            for name, row in zip(names, found, strict=True):
                best = np.argsort(-row, kind="stable")[:top_k].tolist()
                yield [Prediction(name, labels[i], i, float(row[i])) for i in best]


def require_positive(name: str, value: object) -> None:
    """Raise ValueError, which names the argument, unless `value` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a positive whole number")


def _batches(
    inputs: Iterator[tuple[str, Array]], batch_size: int
) -> Iterator[list[tuple[str, Array]]]:
    batch: list[tuple[str, Array]] = []
    try:
        for item in inputs:
            batch.append(item)
            if len(batch) == batch_size:
                yield batch
                batch = []
    except Exception:  # an unreadable image must not take along those that were read before it
        if batch:
            yield batch
        raise
    if batch:
        yield batch
