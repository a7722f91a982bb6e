"""The header of this package's own files: what the tensors' names and shapes leave open.

It is the text metadata of a safetensors file. Everything that can be derived from the tensors'
shapes is checked against them. Beside it are notes: what a network needs to be used rightly (class
names, preparation of images), origin and license; entries of other programs are kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.layouts import Architecture, FormatError, same_sizes
from autoformer_zoo.weights.slicing import BiasRule

FORMAT_VERSION = "1"
_FORMAT = "autoformer_zoo."  # the entry "format" is this and the kind
_KEYS = ("format", "format_version", "bias_rule", "sizes", "img_size", "patch_size")

Kind = Literal["supernet", "subnet"]

# Preparation of images and meaning of the outputs, under timm's names, as JSON.
_CFG_KEYS = ("label_names", "mean", "std", "interpolation", "crop_pct", "crop_mode")
_CHOICES = {
    "interpolation": ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"),
    "crop_mode": ("center", "squash", "border"),
}


@dataclass(frozen=True, slots=True)
class Header:
    """What a canonical file states about itself.

    Args:
        kind: a supernet or one static network.
        bias_rule: how a subnet's q, k and v biases are cut.
        sizes: depth, width, heads and MLP ratios.
        img_size: input (height, width) in pixels.
        patch_size: patch (height, width) in pixels.
    """

    kind: Kind
    bias_rule: BiasRule
    sizes: SubnetConfig
    img_size: tuple[int, int]
    patch_size: tuple[int, int]

    def to_metadata(self, notes: Mapping[str, str]) -> dict[str, str]:
        """Return a file's metadata: `notes` and this header."""
        return {
            **notes,
            "format": _FORMAT + self.kind,
            "format_version": FORMAT_VERSION,
            "bias_rule": self.bias_rule,
            "sizes": self.sizes.to_json(),
            "img_size": json.dumps(self.img_size),
            "patch_size": json.dumps(self.patch_size),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Header | None:
        """Read the header of a canonical file; None for files that have none.

        Raises:
            FormatError: it is of another version, or damaged.
        """
        name = metadata.get("format", "")
        if not name.startswith(_FORMAT):
            return None
        version = metadata.get("format_version")
        if version != FORMAT_VERSION:
            raise FormatError(
                f"its format_version is {version!r}; this release reads {FORMAT_VERSION!r}: "
                "update autoformer_zoo"
            )
        kind, rule = name.removeprefix(_FORMAT), metadata.get("bias_rule")
        if kind not in get_args(Kind):
            raise FormatError(f"its format is {name!r}; expected {_FORMAT}supernet or .subnet")
        if rule not in get_args(BiasRule):
            raise FormatError(f"its bias_rule is {rule!r}; expected one of {get_args(BiasRule)}")
        try:
            return cls(
                kind,  # type: ignore[arg-type]
                rule,  # type: ignore[arg-type]
                SubnetConfig.from_json(metadata["sizes"]),
                _pair(metadata["img_size"]),
                _pair(metadata["patch_size"]),
            )
        except Exception as error:  # whatever a damaged entry breaks
            raise FormatError(f"its header is damaged: {error}") from None

    def confirm(self, found: Architecture) -> Architecture:
        """Return the architecture inferred from the shapes, with this header's exact MLP ratios.

        Raises:
            FormatError: header and shapes contradict each other.
        """
        if not same_sizes(self.sizes, found.sizes) or self.patch_size != found.patch_size:
            raise FormatError(
                f"its header says {self.sizes.to_json()} with patches {self.patch_size}, its "
                f"tensors are of {found.sizes.to_json()} with patches {found.patch_size}"
            )
        return replace(found, sizes=self.sizes, img_size=self.img_size)


def cfg_to_notes(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Return what a file's header must hold for its network to be used rightly.

    Args:
        cfg: a model's `pretrained_cfg`, or a part of one; "origin" in it comes before timm's notes.

    Returns:
        Entries for `SupernetWeights.metadata` or `SubnetWeights.metadata`: class names and the
        preparation of images as JSON, origin and license as they are. What `cfg` lacks is left out.
    """
    notes = {key: json.dumps(cfg[key]) for key in _CFG_KEYS if cfg.get(key) is not None}
    origin = cfg.get("origin") or cfg.get("notes")
    if origin:
        notes["origin"] = origin if isinstance(origin, str) else "; ".join(origin)
    if cfg.get("license"):
        notes["license"] = cfg["license"]
    return notes


def notes_to_cfg(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Undo `cfg_to_notes`: return the header's entries for a model's `pretrained_cfg`.

    The origin becomes timm's `notes`: its config has no field of that name.

    Raises:
        FormatError: an entry is damaged.
    """
    cfg: dict[str, Any] = {}
    for key in _CFG_KEYS:
        if key not in metadata:
            continue
        try:
            value = json.loads(metadata[key])
            is_right = _is_cfg_value(key, value)
        except Exception as error:  # nesting, numbers beyond any float, ...
            raise FormatError(f"its {key} is damaged: {error}") from None
        if not is_right:
            raise FormatError(f"its {key} is damaged: {metadata[key][:80]}")
        cfg[key] = tuple(value) if isinstance(value, list) else value
    if metadata.get("origin"):
        cfg["notes"] = (metadata["origin"],)
    if metadata.get("license"):
        cfg["license"] = metadata["license"]
    return cfg


def _is_cfg_value(key: str, value: object) -> bool:
    if key == "label_names":
        return isinstance(value, list) and all(isinstance(name, str) for name in value)
    if key in ("mean", "std"):
        low = -math.inf if key == "mean" else 0.0
        return isinstance(value, list) and all(_is_number(v) and v > low for v in value)
    if key == "crop_pct":  # less would resize to gigabytes
        return _is_number(value) and 0.1 <= value <= 10  # type: ignore[operator]
    return value in _CHOICES[key]


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def without_header(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the notes in a canonical file's metadata."""
    notes = {key: value for key, value in metadata.items() if key not in _KEYS}
    if "licence" in notes:  # the spelling of version 0.1
        notes.setdefault("license", notes.pop("licence"))
    return notes


def _pair(text: str) -> tuple[int, int]:
    height, width = json.loads(text)
    if not all(type(side) is int and side > 0 for side in (height, width)):
        raise ValueError(f"{text} is not two positive whole numbers")
    return height, width
