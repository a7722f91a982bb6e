"""How an exported file describes itself: one place for the keys of its metadata.

Written by `export.py`, read by `classifier.py` where neither torch nor timm is installed.
Standard library only. A file's metadata are strings; each field is stored as JSON under its own
key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from autoformer_zoo.space import from_mapping

PREFIX = "autoformer_zoo."
FORMAT = 1  # raised if a reader of the older fields would go wrong

Precision = Literal["fp32", "fp16", "int8-dynamic", "int8-static"]
OLDEST_OPSET, NEWEST_OPSET = 18, 22  # from the oldest that torch's exporter writes


@dataclass(frozen=True, slots=True)
class OnnxMetadata:
    """A classifier's own description, without which its outputs mean nothing.

    Args:
        input_size: height and width of the network's input in pixels.
        num_classes: outputs.
        mean: of each channel, for images from 0 to 1; None if unknown.
        std: as mean.
        interpolation: timm's name of the filter that resizes images.
        crop_pct: side of the crop over that of the resized image.
        labels: names of the outputs; None if unknown.
        precision: number format of the weights.
        preprocess: the file takes uint8 images (B, height, width, 3) and prepares them itself.
        softmax: the outputs are probabilities, not logits.
        subnet: the architecture, `SubnetConfig.to_dict()`; None for another network.
        name: of the model.
        origin: where the weights come from.
        license: of the weights.
        package_version: that wrote the file.
        checked: what the check after the export found, see `check.Agreement`.
        crop_mode: timm's, "center" or "squash".
        format: of these fields.
    """

    input_size: tuple[int, int]
    num_classes: int
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    interpolation: str
    crop_pct: float
    labels: tuple[str, ...] | None
    precision: str
    preprocess: bool
    softmax: bool
    subnet: Mapping[str, Any] | None = None
    name: str = ""
    origin: str = ""
    license: str = ""
    package_version: str = ""
    checked: Mapping[str, Any] | None = None
    crop_mode: str = "center"
    format: int = FORMAT

    def to_properties(self) -> dict[str, str]:
        """Return the strings that are stored in the file."""
        values = asdict(self)
        if self.crop_mode == "center":
            del values["crop_mode"]  # version 0.1 refuses files that have the key
        return {PREFIX + key: json.dumps(value) for key, value in values.items()}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> OnnxMetadata:
        """Read `to_properties`' strings; keys of other programs are ignored.

        Raises:
            ValueError: the file was not written by this package, or by a newer one.
        """
        found = {
            key.removeprefix(PREFIX): text
            for key, text in properties.items()
            if key.startswith(PREFIX)
        }
        if not found:
            raise ValueError("has no metadata of autoformer_zoo")
        try:
            values = {key: json.loads(text) for key, text in found.items()}
        except Exception as error:  # besides its own, a RecursionError for deep nesting
            raise ValueError(f"has damaged metadata: {error}") from None
        if values.get("format") != FORMAT:
            raise ValueError(
                f"has metadata of format {values.get('format')!r:.40}; expected {FORMAT}: use the "
                f"autoformer_zoo that wrote it ({values.get('package_version', 'unknown')!s:.40})"
            )
        if "licence" in values:  # the spelling of version 0.1
            values["license"] = values.pop("licence")
        try:
            return from_mapping(cls, values)
        except ValueError as error:
            raise ValueError(f"has other metadata: {error}") from None
