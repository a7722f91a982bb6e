"""The header of this package's own files: what names and shapes of tensors cannot tell.

It is the text metadata of a safetensors file. Everything in it that shapes can confirm is held
against them. Other entries (origin, license) are carried along, not understood.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.layouts import Architecture, FormatError, same_sizes
from autoformer_zoo.weights.slicing import BiasRule

FORMAT_VERSION = "1"
_FORMAT = "autoformer_zoo."  # the entry "format" is this and the kind
_KEYS = ("format", "format_version", "bias_rule", "sizes", "img_size", "patch_size")

Kind = Literal["supernet", "subnet"]


@dataclass(frozen=True, slots=True)
class Header:
    """What a canonical file says of itself.

    Args:
        kind: a supernet, to be cut, or one static network.
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
        """Return the file's metadata: `notes` (origin, license) and this header."""
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
        except (KeyError, ValueError, TypeError) as error:
            raise FormatError(f"its header is damaged: {error}") from None

    def confirm(self, found: Architecture) -> Architecture:
        """Return the architecture that shapes told, with the exact ratios of this header.

        Raises:
            FormatError: header and shapes contradict each other.
        """
        if not same_sizes(self.sizes, found.sizes) or self.patch_size != found.patch_size:
            raise FormatError(
                f"its header says {self.sizes.to_json()} with patches {self.patch_size}, its "
                f"tensors are of {found.sizes.to_json()} with patches {found.patch_size}"
            )
        return Architecture(
            self.sizes, self.img_size, self.patch_size, found.in_chans, found.num_classes
        )


def without_header(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the notes (origin, license) of a canonical file's metadata."""
    notes = {key: value for key, value in metadata.items() if key not in _KEYS}
    if "licence" in notes:  # the spelling of version 0.1
        notes.setdefault("license", notes.pop("licence"))
    return notes


def _pair(text: str) -> tuple[int, int]:
    height, width = json.loads(text)
    if not all(type(side) is int and side > 0 for side in (height, width)):
        raise ValueError(f"{text} is not two positive whole numbers")
    return height, width
