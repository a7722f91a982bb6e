"""Checkpoints: any known file to the weights of a supernet or of one subnet, and back.

`open_checkpoint` recognises the kind from names and shapes: official, PreNAS and MMRazor
supernets, NNI subnets, plain state dicts of the static network, and this package's own files. Those
are safetensors with our names and a header for what shapes do not determine: the bias rule, the
exact sizes, class names, where the weights come from. Values keep their stored type here; models
are built in float32.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import get_args

from torch import Tensor

from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.files import (
    CheckpointError,
    exactly,
    is_finite,
    read_tensors,
    refusal,
    take_weights,
    write_tensors,
)
from autoformer_zoo.weights.header import Header, Kind, notes_to_cfg, without_header
from autoformer_zoo.weights.layouts import (
    BIAS_RULES,
    Architecture,
    Family,
    FormatError,
    Layout,
    join,
    read_architecture,
    recognise,
    same_sizes,
    upstream_names,
)
from autoformer_zoo.weights.slicing import BiasRule, slice_supernet

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "SubnetWeights",
    "SupernetWeights",
    "open_checkpoint",
    "save_subnet",
    "save_supernet",
]

FileOrState = str | os.PathLike[str] | Mapping[str, Tensor]

_log = logging.getLogger(__name__)


class _Weights:
    """What the weights of a supernet and of a subnet have in common."""

    __slots__ = ()
    tensors: Mapping[str, Tensor]
    net: Architecture

    @property
    def img_size(self) -> tuple[int, int]:
        """Input (height, width) in pixels."""
        return self.net.img_size

    @property
    def patch_size(self) -> tuple[int, int]:
        """Patch (height, width) in pixels."""
        return self.net.patch_size

    @property
    def in_chans(self) -> int:
        """Channels of the input."""
        return self.net.in_chans

    @property
    def num_classes(self) -> int:
        """Outputs of the head; 0 for no head."""
        return self.net.num_classes

    def __repr__(self) -> str:
        params = sum(tensor.numel() for tensor in self.tensors.values())
        return f"{type(self).__name__}({self.net}, {params:,} parameters)"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SupernetWeights(_Weights):
    """A supernet's tensors and what is needed to cut subnets from them.

    Args:
        tensors: under the names of `AutoFormer`; q, k and v weights are thirds. They may be mapped
            from a file: never write into them.
        net: the architecture, with the sizes of the supernet.
        bias_rule: how a subnet's q, k and v biases are cut.
        metadata: notes of the file's header (origin, license, class names, ...).
    """

    tensors: Mapping[str, Tensor]
    net: Architecture
    bias_rule: BiasRule
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def sizes(self) -> SubnetConfig:
        """Depth, width, heads and MLP ratios of the supernet."""
        return self.net.sizes

    def cut(self, subnet: SubnetConfig) -> SubnetWeights:
        """Return the weights that a subnet inherits, as views where possible.

        Raises:
            ValueError: the subnet does not fit; the text names the layer.
        """
        with exactly():
            tensors = slice_supernet(self.tensors, self.sizes, subnet, self.bias_rule)
        return SubnetWeights(tensors, replace(self.net, sizes=subnet), self.metadata)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SubnetWeights(_Weights):
    """The tensors of one static network.

    Args:
        tensors: under the names of `AutoFormer`; they may be views or mapped from a file.
        net: the architecture.
        metadata: as in `SupernetWeights`.
    """

    tensors: Mapping[str, Tensor]
    net: Architecture
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def subnet(self) -> SubnetConfig:
        """Depth, width, heads and MLP ratios."""
        return self.net.sizes


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """An opened checkpoint whose names and shapes are right; its values have not been checked.

    Args:
        source: name for messages.
        architecture: of the network in it.
        metadata: notes of the header; empty if there is none.
        upstream: the tensors under their own names, mapped from the file.
        family: the family of these names.
        header: of this package's own files.
        layout: packing of q, k and v, from the caller or the table of sources; None if unknown.
    """

    source: str
    architecture: Architecture
    metadata: Mapping[str, str] = field(repr=False)
    upstream: Mapping[str, Tensor] = field(repr=False)
    family: Family
    header: Header | None
    layout: Layout | None

    @property
    def kind(self) -> Kind | None:
        """What the checkpoint holds; None for a state dict under our names, which may be either."""
        if self.header:
            return self.header.kind
        kinds: Mapping[Family, Kind] = {
            "packed": "supernet",
            "nni": "subnet",
            "mmrazor": "supernet",
        }
        return kinds.get(self.family)

    @property
    def is_supernet(self) -> bool:
        """True if a subnet has to be cut from it."""
        return self.kind == "supernet"

    @property
    def bias_rule(self) -> BiasRule:
        """How a subnet's q, k and v biases are cut from it."""
        if self.header:
            return self.header.bias_rule
        return BIAS_RULES[self.layout or "packed_prefix"] if self.family == "packed" else "prefix"

    def assuming(self, layout: str | None) -> Checkpoint:
        """Return the checkpoint with this packing, if it is one that does not record its own.

        Raises:
            ValueError: `layout` is unknown.
        """
        is_open = self.family == "packed" and self.layout is None
        return replace(self, layout=_checked_layout(layout)) if is_open else self

    def supernet(self) -> SupernetWeights:
        """Return the weights of the supernet in it.

        Raises:
            CheckpointError: it holds one subnet, or NaN or infinity.
        """
        if self.kind == "subnet":
            raise refusal(self.source, "holds a subnet, not a supernet")
        weights = self._supernet()
        self._require_finite(weights.tensors)
        self._log_assumption()
        return weights

    def subnet(self, subnet: SubnetConfig | None = None) -> SubnetWeights:
        """Return the weights of one network; a supernet's are cut.

        Args:
            subnet: which subnet of a supernet; if the checkpoint holds one network, what it must
                be. None takes the checkpoint's.

        Raises:
            ValueError: `subnet` does not fit the supernet.
            CheckpointError: it holds another subnet, a supernet while `subnet` is None, or NaN or
                infinity.
        """
        sizes = self.architecture.sizes
        if self.is_supernet:
            if subnet is None:
                raise refusal(self.source, "holds a supernet; give subnet=, which to cut from it")
            weights = self._supernet().cut(subnet)
            self._log_assumption()
        elif subnet is None or same_sizes(subnet, sizes):
            net = replace(self.architecture, sizes=subnet or sizes)
            weights = SubnetWeights(self._tensors(), net, self.metadata)
        else:
            raise refusal(
                self.source, f"holds the subnet {sizes.to_json()}; expected {subnet.to_json()}"
            )
        self._require_finite(weights.tensors)
        return weights

    def _supernet(self) -> SupernetWeights:
        return SupernetWeights(self._tensors(), self.architecture, self.bias_rule, self.metadata)

    def _tensors(self) -> dict[str, Tensor]:
        """Return all tensors under our names."""
        out = {}
        with exactly():
            for name in self.architecture.shapes():
                parts = [self.upstream[part] for part in upstream_names(self.family, name)]
                out[name] = join(self.family, name, parts, self.layout)
        return out

    def _require_finite(self, tensors: Mapping[str, Tensor]) -> None:
        bad = [name for name, tensor in tensors.items() if not is_finite(tensor)]
        if bad:
            raise refusal(self.source, f"{len(bad)} tensors hold NaN or infinity, {bad[0]} first")

    def _log_assumption(self) -> None:
        if self.family == "packed" and self.layout is None:
            _log.warning(
                "%s: the file does not record how its qkv bias is packed; assuming packed_prefix "
                "(official). For PreNAS files give layout='packed_interleaved'.",
                self.source,
            )
        elif self.header is None and self.family == "static":
            _log.info("%s: no header; read with bias rule prefix", self.source)


def open_checkpoint(source: FileOrState, layout: str | None = None) -> Checkpoint:
    """Open a checkpoint of any known kind, and check names and shapes.

    Args:
        source: a file, or a state dict.
        layout: packing of q, k and v in an official-shaped file: "packed_prefix" (official) or
            "packed_interleaved" (PreNAS). Such a file does not record it: without it the official
            packing is assumed and logged. Canonical files record theirs.

    Raises:
        ValueError: `layout` is unknown.
        CheckpointError: the source is refused, or contradicts `layout`.
    """
    stated = _checked_layout(layout)
    if isinstance(source, Mapping):
        name, metadata = "the state dict", dict[str, str]()
        tensors = take_weights(source, name)
    else:
        name = os.fspath(source)
        tensors, metadata = read_tensors(source)
    try:
        return _interpret(name, tensors, metadata, stated)
    except Exception as error:  # FormatError, and any other error that invalid shapes cause
        raise refusal(name, error) from None


def save_supernet(weights: SupernetWeights, path: str | os.PathLike[str]) -> None:
    """Write a canonical supernet file; it is renamed to `path` only when complete.

    Raises:
        CheckpointError: what was read back differs from `weights`.
        OSError: the file cannot be written.
    """
    _save(weights, "supernet", weights.bias_rule, path)


def save_subnet(weights: SubnetWeights, path: str | os.PathLike[str]) -> None:
    """Write a canonical subnet file; raises as `save_supernet` does."""
    _save(weights, "subnet", "prefix", path)


def _save(
    weights: SupernetWeights | SubnetWeights,
    kind: Kind,
    bias_rule: BiasRule,
    path: str | os.PathLike[str],
) -> None:
    net = weights.net
    header = Header(kind, bias_rule, net.sizes, net.img_size, net.patch_size)
    write_tensors(path, weights.tensors, header.to_metadata(weights.metadata))


def _checked_layout(layout: str | None) -> Layout | None:
    if layout is not None and layout not in get_args(Layout):
        raise ValueError(f"layout is {layout!r}; expected None or one of {get_args(Layout)}")
    return layout  # type: ignore[return-value]


def _interpret(
    source: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], layout: Layout | None
) -> Checkpoint:
    header = Header.from_metadata(metadata)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    family: Family = "static" if header else recognise(shapes)
    found = read_architecture(family, shapes, header.img_size if header else None)
    if header:
        found = header.confirm(found)
        cfg = notes_to_cfg(metadata)  # raises here, where the file's name is known
        for key in ("mean", "std"):
            if len(cfg.get(key, (0,))) not in (1, 3, found.in_chans):
                raise FormatError(f"its {key} is damaged: {metadata[key][:80]}")
    if layout is not None and family != "packed":
        has = f"{family} names, not packed ones"
        if header:
            has = f"a header with bias_rule {header.bias_rule}"
        if header is None or BIAS_RULES[layout] != header.bias_rule:
            raise FormatError(f"has {has}; layout={layout!r} contradicts it, leave layout out")
    notes = without_header(metadata) if header else {}
    return Checkpoint(source, found, notes, tensors, family, header, layout)
