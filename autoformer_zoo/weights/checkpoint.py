"""Checkpoints: any known file to the weights of a supernet or of one subnet, and back.

The kind is recognised from names and shapes: official and PreNAS supernets, NNI subnets, plain
state dicts of the static network, and this package's own files. Those are safetensors with
canonical names and a header that says what shapes cannot: which bias rule holds, the exact sizes,
where the weights come from. Opening is `files.py`, names and packing `layouts.py`,
cutting `slicing.py`. Values keep their stored type here; models are built in float32.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.files import (
    CheckpointError,
    is_finite,
    read_tensors,
    refusal,
    same_bits,
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
    split,
    upstream_names,
)
from autoformer_zoo.weights.slicing import BiasRule, slice_supernet

__all__ = [
    "CheckpointError",
    "SubnetWeights",
    "SupernetWeights",
    "convert_supernet",
    "holds_supernet",
    "load_subnet",
    "load_supernet",
    "load_weights",
    "read_tensors",
    "save_subnet",
    "save_supernet",
]

_REMAP_BYTES = 64 << 20

_log = logging.getLogger(__name__)

Source = str | os.PathLike[str] | Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class SupernetWeights:
    """A supernet's tensors and what is needed to cut subnets from them.

    Args:
        tensors: under the names of `vit.AutoFormer`; q, k and v weights are thirds. They may be
            mapped from a file: never write into them.
        sizes: depth, width, heads and MLP ratios of the supernet.
        bias_rule: how a subnet's q, k and v biases are cut.
        img_size: input (height, width) in pixels.
        patch_size: patch (height, width) in pixels.
        in_chans: channels of the input.
        num_classes: outputs of the head; 0 for no head.
        metadata: origin, license and the like from the file's header; empty where there is none.
    """

    tensors: Mapping[str, Tensor]
    sizes: SubnetConfig
    bias_rule: BiasRule
    img_size: tuple[int, int]
    patch_size: tuple[int, int]
    in_chans: int
    num_classes: int
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class SubnetWeights:
    """The tensors of one static network.

    Args:
        tensors: under the names of `vit.AutoFormer`; they may be views or mapped from a file.
        subnet: the network.
        img_size: input (height, width) in pixels.
        patch_size: patch (height, width) in pixels.
        in_chans: channels of the input.
        num_classes: outputs of the head; 0 for no head.
        metadata: as in `SupernetWeights`.
    """

    tensors: Mapping[str, Tensor]
    subnet: SubnetConfig
    img_size: tuple[int, int]
    patch_size: tuple[int, int]
    in_chans: int
    num_classes: int
    metadata: Mapping[str, str] = field(default_factory=dict)


def load_supernet(source: Source, layout: str | None = None) -> SupernetWeights:
    """Load a supernet: official, PreNAS or canonical.

    Args:
        source: a file, or a state dict.
        layout: how q, k and v are packed in an official-shaped file: "packed_prefix" (official) or
            "packed_interleaved" (PreNAS). Nothing in such a file tells, so that without it the
            official layout is assumed and logged. Canonical files know theirs.

    Raises:
        ValueError: `layout` is unknown.
        CheckpointError: the source is refused, is a subnet, or contradicts `layout`.
    """
    opened = _open(source, layout)
    if opened.kind == "subnet" or opened.family == "nni":
        raise refusal(opened.source, "holds a subnet, not a supernet; load_subnet reads it")
    tensors = {name: opened.get(name) for name in opened.architecture.shapes()}
    _require_finite(opened.source, tensors)
    _log_assumption(opened, layout)
    return _supernet(opened, tensors)


def load_subnet(path: str | os.PathLike[str]) -> SubnetWeights:
    """Load one static network: canonical and NNI subnet files, and plain state dicts.

    Raises:
        CheckpointError: the file is refused, or holds a supernet.
    """
    return load_weights(path, None)


def load_weights(
    path: Source, subnet: SubnetConfig | None, layout: str | None = None
) -> SubnetWeights:
    """Load the weights of one network from a file of any kind; a supernet's are cut.

    Args:
        path: the file, or a state dict.
        subnet: which subnet of a supernet; where the file holds one network, what it must be. None
            takes the file's.
        layout: as in `load_supernet`.

    Raises:
        ValueError: `layout` is unknown, or `subnet` does not fit the supernet.
        CheckpointError: the file is refused, holds another subnet, or holds a supernet and
            `subnet` is None.
    """
    opened = _open(path, layout)
    sizes = opened.architecture.sizes
    tensors: Mapping[str, Tensor] = {
        name: opened.get(name) for name in opened.architecture.shapes()
    }
    if opened.is_supernet:
        if subnet is None:
            raise refusal(opened.source, "holds a supernet; say which subnet= to cut from it")
        tensors = slice_supernet(tensors, sizes, subnet, opened.bias_rule)
        _log_assumption(opened, layout)
    elif subnet is None:
        subnet = sizes
    elif not same_sizes(subnet, sizes):
        raise refusal(
            opened.source, f"holds the subnet {sizes.to_json()}; {subnet.to_json()} was asked for"
        )
    _require_finite(opened.source, tensors)
    net = opened.architecture
    return SubnetWeights(
        tensors,
        subnet,
        net.img_size,
        net.patch_size,
        net.in_chans,
        net.num_classes,
        opened.metadata,
    )


def holds_supernet(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file holds a supernet, to be cut, or one static network.

    Raises:
        CheckpointError: the file is refused.
    """
    return _open(path, None).is_supernet


def save_supernet(weights: SupernetWeights, path: str | os.PathLike[str]) -> None:
    """Write a canonical supernet file; it appears under its name only when it is whole.

    Raises:
        CheckpointError: what was read back differs from `weights`.
        OSError: the file cannot be written.
    """
    _save(weights.tensors, _supernet_metadata(weights), path)


def save_subnet(weights: SubnetWeights, path: str | os.PathLike[str]) -> None:
    """Write a canonical subnet file; raises as `save_supernet` does."""
    header = Header("subnet", "prefix", weights.subnet, weights.img_size, weights.patch_size)
    _save(weights.tensors, header.to_metadata(weights.metadata), path)


def convert_supernet(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    layout: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> SupernetWeights:
    """Turn a supernet file into a canonical one, holding little of it in memory at a time.

    Before `out` gets its name it is read back, brought into the source's own packing, and compared
    with the source bit by bit.

    Args:
        source: an official, PreNAS or canonical file.
        out: where the canonical file shall stand.
        layout: as in `load_supernet`.
        metadata: origin, license and the like, added to what the source's header has.

    Returns:
        The supernet, mapped from `out`; its values were checked while they were converted.

    Raises:
        ValueError: `layout` is unknown.
        CheckpointError: the source is refused.
        OSError: the file cannot be written.
    """
    opened = _open(source, layout, metadata or {})
    if opened.kind == "subnet" or opened.family == "nni":
        raise refusal(opened.source, "holds a subnet; convert it as one")
    upstream = _Remapped(Path(source))
    family, specs = opened.family, _specs(opened)

    def get(name: str) -> Tensor:
        parts = [upstream[part] for part in upstream_names(family, name)]
        tensor = join(family, name, parts, opened.layout)
        _require_finite(opened.source, {name: tensor})
        return tensor

    def is_same(name: str, back: Tensor) -> bool:
        parts = zip(
            upstream_names(family, name), split(family, name, back, opened.layout), strict=True
        )
        return all(same_bits(part, upstream[part_name]) for part_name, part in parts)

    write_tensors(out, specs, get, _supernet_metadata(_supernet(opened, {})), is_same)
    _log_assumption(opened, layout)
    return _supernet(opened, read_tensors(out)[0])


@dataclass(frozen=True, slots=True)
class _Opened:
    """A checkpoint whose names and shapes were found right; no value was looked at yet."""

    source: str
    upstream: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    family: Family
    kind: Kind | None  # from the header; None where there is none
    layout: Layout | None  # of a packed family
    bias_rule: BiasRule
    architecture: Architecture

    @property
    def is_supernet(self) -> bool:
        return self.kind == "supernet" or self.family == "packed"

    def get(self, name: str) -> Tensor:
        """Return a canonical tensor."""
        parts = [self.upstream[part] for part in upstream_names(self.family, name)]
        return join(self.family, name, parts, self.layout)


class _Remapped(Mapping[str, Tensor]):
    """A file's tensors, mapped anew from time to time so that pages read are given back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tensors = read_tensors(path)[0]
        self._used = 0

    def __getitem__(self, name: str) -> Tensor:
        if self._used > _REMAP_BYTES:
            self._tensors, self._used = read_tensors(self._path)[0], 0
        tensor = self._tensors[name]
        self._used += tensor.numel() * tensor.element_size()
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _open(source: Source, layout: str | None, extra: Mapping[str, str] | None = None) -> _Opened:
    if layout is not None and layout not in get_args(Layout):
        raise ValueError(f"layout is {layout!r}; expected None or one of {get_args(Layout)}")
    if isinstance(source, Mapping):
        name, metadata = "the state dict", dict[str, str]()
        tensors = take_weights(source, name)
    else:
        name = os.fspath(source)
        tensors, metadata = read_tensors(source)
    try:
        return _interpret(name, tensors, metadata, layout, extra or {})
    except FormatError as error:
        raise refusal(name, error) from None


def _interpret(
    source: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    layout: str | None,
    extra: Mapping[str, str],
) -> _Opened:
    header = Header.from_metadata(metadata)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    family: Family = "static" if header else recognise(shapes)
    found = read_architecture(family, shapes, header.img_size if header else None)
    if header:
        found = header.confirm(found)
        notes_to_cfg(metadata)  # raises here, where the file's name is known
    packed: Layout | None = None
    bias_rule: BiasRule = header.bias_rule if header else "prefix"
    if family == "packed":
        packed = "packed_interleaved" if layout == "packed_interleaved" else "packed_prefix"
        bias_rule = BIAS_RULES[packed]
    elif layout is not None and not (header and BIAS_RULES[layout] == bias_rule):  # type: ignore[index]
        has = (
            f"a header with bias_rule {bias_rule}" if header else f"{family} names, not packed ones"
        )
        raise FormatError(f"has {has}; layout={layout!r} contradicts it, leave layout out")
    return _Opened(
        source,
        tensors,
        {**(without_header(metadata) if header else {}), **extra},
        family,
        header.kind if header else None,
        packed,
        bias_rule,
        found,
    )


def _supernet(opened: _Opened, tensors: Mapping[str, Tensor]) -> SupernetWeights:
    net = opened.architecture
    return SupernetWeights(
        tensors,
        net.sizes,
        opened.bias_rule,
        net.img_size,
        net.patch_size,
        net.in_chans,
        net.num_classes,
        opened.metadata,
    )


def _supernet_metadata(weights: SupernetWeights) -> dict[str, str]:
    header = Header(
        "supernet", weights.bias_rule, weights.sizes, weights.img_size, weights.patch_size
    )
    return header.to_metadata(weights.metadata)


def _specs(opened: _Opened) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {
        name: (opened.upstream[upstream_names(opened.family, name)[0]].dtype, shape)
        for name, shape in opened.architecture.shapes().items()
    }


def _save(
    tensors: Mapping[str, Tensor], header: Mapping[str, str], path: str | os.PathLike[str]
) -> None:
    specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    get: Callable[[str], Tensor] = tensors.__getitem__
    write_tensors(path, specs, get, header)


def _require_finite(source: str, tensors: Mapping[str, Tensor]) -> None:
    bad = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if bad:
        raise refusal(source, f"{len(bad)} tensors hold NaN or infinity, {bad[0]} first")


def _log_assumption(opened: _Opened, layout: str | None) -> None:
    if opened.family == "packed" and layout is None:
        _log.warning(
            "%s: nothing in it tells how the qkv bias lies; read as packed_prefix (official). "
            "For PreNAS files give layout='packed_interleaved'.",
            opened.source,
        )
    elif opened.family == "static" and opened.kind is None:
        _log.info("%s: no header; read with bias rule prefix", opened.source)
