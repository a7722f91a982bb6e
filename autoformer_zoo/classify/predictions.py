"""What a classifier answers: shared by predict.py and onnx_classifier.py; standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer to one image.

    Args:
        image: the image's path, or its kind and place in the list ("array 2").
        label: name of the class.
        index: its place among the model's outputs.
        probability: softmax over all outputs, from 0 to 1.
    """

    image: str
    label: str
    index: int
    probability: float


def require_positive(name: str, value: object) -> None:
    """Refuse what is no positive whole number.

    Raises:
        ValueError: it is not; the text has its name.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a positive whole number")
