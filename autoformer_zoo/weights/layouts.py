"""How each kind of checkpoint names, shapes and packs its tensors, and how ours are made of them.

Pure functions of names, shapes and tensors; `files.py` opens files, and `checkpoint.py` makes
supernets and subnets of what they hold. Our names are those of `AutoFormer`'s state dict.

Four families of names are recognised:
static: our own names, in canonical files and plain state dicts.
packed: official AutoFormer (microsoft/Cream@4a13c40, AutoFormer/model) and PreNAS supernets. Rows
    0::3, 1::3, 2::3 of their qkv weight are q, k and v. Their bias follows one of two rules,
    which names and shapes do not show: see `Layout`.
nni: NNI 3.0's AutoformerSpace with one architecture fixed (microsoft/nni@078107f,
    nni/nas/hub/pytorch/autoformer.py): q, k and v are separate.
mmrazor: MMRazor 1.0's supernet (open-mmlab/mmrazor, searchable_autoformer.py): q, k and v are
    separate, and each is cut by its first rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from autoformer_zoo.published import SPACES
from autoformer_zoo.space import HEAD_DIM, NUM_REL_POS, SearchSpace, SubnetConfig
from autoformer_zoo.weights.files import Shape, shown
from autoformer_zoo.weights.slicing import BiasRule

Family = Literal["static", "packed", "nni", "mmrazor"]
Layout = Literal["packed_prefix", "packed_interleaved"]
"""Memory layout of the qkv bias of a packed supernet.

packed_prefix: official. A layer with h heads takes the first 3 * 64h entries and splits them in
thirds. The bias is kept as it is, and `slicing.BiasRule` does the rest.
packed_interleaved: PreNAS. Interleaved as the weight is.
"""

BIAS_RULES: Mapping[Layout, BiasRule] = {
    "packed_prefix": "packed_prefix",
    "packed_interleaved": "prefix",
}

# The patch projection's names in official and PreNAS, in NNI, and in MMRazor state dicts.
UPSTREAM_NAMES = frozenset(
    {
        "patch_embed_super.proj.weight",
        "patch_embed.weight",
        "backbone.patch_embed.projection.weight",
    }
)

# From our names to theirs; within blocks, both upstream families have the same.
_IN_BLOCKS = (
    (r"\.norm1\.", ".attn_layer_norm."),
    (r"\.norm2\.", ".ffn_layer_norm."),
    (r"\.mlp\.", "."),
)
_RENAMES: Mapping[Family, Sequence[tuple[str, str]]] = {
    "static": (),
    "packed": ((r"^patch_embed\.", "patch_embed_super."), *_IN_BLOCKS),
    "nni": (
        (r"^patch_embed\.proj\.", "patch_embed."),
        (r"^(cls_token|pos_embed)$", r"\1.\1"),
        *_IN_BLOCKS,
    ),
    "mmrazor": (
        (r"^head\.", "head.fc."),
        (r"^norm\.", "ln."),
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
        (r"\.norm([12])\.", r".ln\1."),
        (r"\.mlp\.", "."),
        (r"^(?!head\.)", "backbone."),
    ),
}
_QKV: Mapping[Family, tuple[str, str, str]] = {
    "nni": ("q", "k", "v"),
    "mmrazor": ("w_qs", "w_ks", "w_vs"),
}


class FormatError(ValueError):
    """A file does not hold an AutoFormer; the text is the reason, without the file's name."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything that the shapes of a network's tensors depend on.

    Args:
        sizes: depth, width, heads and MLP ratios.
        img_size: input height and width in pixels.
        patch_size: patch height and width in pixels.
        in_chans: channels of the input.
        num_classes: outputs of the head; 0 for no head.
    """

    sizes: SubnetConfig
    img_size: tuple[int, int]
    patch_size: tuple[int, int]
    in_chans: int
    num_classes: int

    @classmethod
    def of_space(cls, space: SearchSpace) -> Architecture:
        """Return the architecture of a space's supernet, for RGB images."""
        sides = (space.img_size, space.img_size), (space.patch_size, space.patch_size)
        return cls(space.supernet, *sides, in_chans=3, num_classes=space.num_classes)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.patch_size
        return self.img_size[0] // height, self.img_size[1] // width

    def shapes(self) -> dict[str, Shape]:
        """Return the canonical names and shapes of all tensors, in the network's order."""
        width = self.sizes.embed_dim
        rows, columns = self.grid_size
        out: dict[str, Shape] = {
            "cls_token": (1, 1, width),
            "pos_embed": (1, 1 + rows * columns, width),
            "patch_embed.proj.weight": (width, self.in_chans, *self.patch_size),
            "patch_embed.proj.bias": (width,),
        }
        for i in range(self.sizes.depth):
            attn, hidden = self.sizes.attn_dims[i], self.sizes.hidden_dims[i]
            block: dict[str, Shape] = {
                "norm1.weight": (width,),
                "norm1.bias": (width,),
                "attn.rel_pos": (4, NUM_REL_POS, HEAD_DIM),
                "attn.qkv.weight": (3 * attn, width),
                "attn.qkv.bias": (3 * attn,),
                "attn.proj.weight": (width, attn),
                "attn.proj.bias": (width,),
                "norm2.weight": (width,),
                "norm2.bias": (width,),
                "mlp.fc1.weight": (hidden, width),
                "mlp.fc1.bias": (hidden,),
                "mlp.fc2.weight": (width, hidden),
                "mlp.fc2.bias": (width,),
            }
            out |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
        out |= {"norm.weight": (width,), "norm.bias": (width,)}
        if self.num_classes:
            out |= {"head.weight": (self.num_classes, width), "head.bias": (self.num_classes,)}
        return out


def upstream_names(family: Family, name: str) -> tuple[str, ...]:
    """Return the names in `family` of the tensors that one of ours is made of."""
    if family == "static":
        return (name,)
    if name.endswith(".attn.rel_pos"):  # rows of the table's grid are "v", columns "h"
        stem = name.removesuffix("rel_pos")
        names = [f"{stem}rel_pos_embed_{kv}.embeddings_table_{vh}" for kv in "kv" for vh in "vh"]
    elif family in _QKV and ".attn.qkv." in name:
        names = [name.replace(".qkv.", f".{part}.") for part in _QKV[family]]
    else:
        names = [name]
    for pattern, replacement in _RENAMES[family]:
        names = [re.sub(pattern, replacement, each) for each in names]
    return tuple(names)


def join(
    family: Family, name: str, parts: Sequence[Tensor], layout: Layout | None = None
) -> Tensor:
    """Make one of our tensors of its upstream parts.

    Args:
        family: the family of the parts.
        name: our name.
        parts: tensors in the order of `upstream_names`.
        layout: of the bias, for "packed".

    Returns:
        The part itself if nothing has to be done.
    """
    if _is_table(family, name):
        return torch.stack(list(parts))  # (4, R, D)
    if len(parts) > 1:
        return torch.cat(list(parts))  # (3 * H * D, ...)
    if _is_interleaved(family, name, layout):
        return torch.cat([parts[0][first::3] for first in range(3)])  # q, k, v: (3 * H * D, ...)
    return parts[0]


def recognise(names: Iterable[str]) -> Family:
    """Return the family that most of these tensor names belong to.

    Raises:
        FormatError: most belong to none, or they are those of NNI's supernet.
    """
    given = set(names)
    if any(name.startswith("blocks.blocks.") for name in given):
        raise FormatError(_NNI_SUPERNET)
    probe = Architecture(
        SubnetConfig(depth := max(_depth(given), 1), 1, (1,) * depth, (1.0,) * depth),
        img_size=(1, 1),
        patch_size=(1, 1),
        in_chans=1,
        num_classes=1,
    ).shapes()
    families = get_args(Family)
    matches = {
        family: len(given.intersection(up for name in probe for up in upstream_names(family, name)))
        for family in families
    }
    best = max(families, key=lambda family: matches[family])
    if 2 * matches[best] < len(given) or not given:
        raise FormatError(
            f"its {len(given)} tensors are not an AutoFormer's (official, PreNAS, NNI, "
            f"MMRazor or this package's names): {_some(sorted(given))}"
        )
    return best


def read_architecture(
    family: Family, shapes: Mapping[str, Shape], img_size: tuple[int, int] | None = None
) -> Architecture:
    """Infer the architecture from upstream shapes, and check every tensor.

    Args:
        family: the family of the names.
        shapes: upstream names and shapes.
        img_size: input (height, width) if known; a square grid is assumed otherwise.

    Raises:
        FormatError: keys are missing, unknown or of the wrong shape (all in one text), a size is
            one that no AutoFormer can have, or it is NNI's supernet.
    """
    architecture = _guess(family, shapes, img_size)
    expected = {
        part: shape
        for name, whole in architecture.shapes().items()
        for part, shape in _parts_of(family, name, whole)
    }
    missing = [name for name in expected if name not in shapes]
    unexpected = [name for name in shapes if name not in expected]
    wrong = [
        f"{name} is {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    problems = [
        f"{what} {_some(names)}"
        for what, names in (
            ("missing keys", missing),
            ("unexpected keys", unexpected),
            ("wrong shapes:", wrong),
        )
        if names
    ]
    if problems:
        raise FormatError("; ".join(problems))
    if family == "nni" and architecture.sizes in _nni_supernets():
        raise FormatError(_NNI_SUPERNET)
    return architecture


def same_sizes(one: SubnetConfig, other: SubnetConfig) -> bool:
    """Return True if two configs give the same shapes; MLP ratios may differ in rounding."""
    return (one.depth, one.embed_dim, one.num_heads, one.hidden_dims) == (
        other.depth,
        other.embed_dim,
        other.num_heads,
        other.hidden_dims,
    )


_NNI_SUPERNET = (
    "it is NNI's supernet, whose v biases are wrong in every layer but those with the most heads; "
    "take NNI's subnet files (autoformer-tiny/small/base-subnet) or the official supernets"
)


def _nni_supernets() -> list[SubnetConfig]:
    """NNI stores the largest subnet of a space, sliced from the official supernet."""
    return [size for space in SPACES.values() for size in (space.largest, space.supernet)]


def _is_table(family: Family, name: str) -> bool:
    return family != "static" and name.endswith(".attn.rel_pos")


def _is_interleaved(family: Family, name: str, layout: Layout | None) -> bool:
    return family == "packed" and (
        name.endswith(".attn.qkv.weight")
        or (name.endswith(".attn.qkv.bias") and layout == "packed_interleaved")
    )


def _parts_of(family: Family, name: str, whole: Shape) -> Iterator[tuple[str, Shape]]:
    parts = upstream_names(family, name)
    if len(parts) > 1:
        whole = whole[1:] if _is_table(family, name) else (whole[0] // len(parts), *whole[1:])
    return ((part, whole) for part in parts)


def _depth(names: Iterable[str]) -> int:
    """Count the different blocks; a block that is left out shows as a missing key later."""
    found = (re.match(r"(?:backbone\.)?blocks\.(\d{1,4})\.", name) for name in names)
    return len({match[1] for match in found if match})


def _guess(
    family: Family, shapes: Mapping[str, Shape], img_size: tuple[int, int] | None
) -> Architecture:
    """Read each size from the first tensor that has it; the comparison finds what is wrong."""

    def dim(name: str, axis: int) -> int | None:
        parts = upstream_names(family, name)
        shape = next((shapes[part] for part in parts if part in shapes), ())
        size = shape[axis] if -len(shape) <= axis < len(shape) else 0
        is_qkv = ".attn.qkv." in name and axis == 0
        return (size * len(parts) if is_qkv else size) or None

    def first(*places: tuple[str, int]) -> int | None:
        return next((size for name, axis in places if (size := dim(name, axis))), None)

    width = first(("cls_token", -1), ("norm.weight", 0), ("pos_embed", -1), ("norm.bias", 0))
    depth = _depth(shapes)
    if width is None or depth == 0:
        raise FormatError("missing keys: no cls_token, norm or blocks to read the sizes from")
    heads, ratios = [], []
    for i in range(depth):
        attn = first((f"blocks.{i}.attn.qkv.bias", 0), (f"blocks.{i}.attn.qkv.weight", 0))
        if attn is not None and attn % (3 * HEAD_DIM):
            raise FormatError(
                f"blocks.{i}.attn: q, k and v have {attn} rows; expected a multiple of "
                f"3 * {HEAD_DIM}, heads are {HEAD_DIM} wide"
            )
        heads.append(attn // (3 * HEAD_DIM) if attn else 1)
        hidden = first((f"blocks.{i}.mlp.fc1.bias", 0), (f"blocks.{i}.mlp.fc1.weight", 0))
        ratios.append(_ratio(width, hidden or width))
    patch_size = (dim("patch_embed.proj.weight", 2) or 16, dim("patch_embed.proj.weight", 3) or 16)
    return Architecture(
        SubnetConfig(depth, width, tuple(heads), tuple(ratios)),
        img_size or _square_img_size(dim("pos_embed", 1) or 2, patch_size),
        patch_size,
        in_chans=dim("patch_embed.proj.weight", 1) or 3,
        num_classes=first(("head.bias", 0), ("head.weight", 0)) or 0,
    )


def _ratio(embed_dim: int, hidden: int) -> float:
    """Return a ratio r with int(embed_dim * r) == hidden."""
    ratio = hidden / embed_dim
    return ratio if int(embed_dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def _square_img_size(num_tokens: int, patch_size: tuple[int, int]) -> tuple[int, int]:
    side = math.isqrt(num_tokens - 1)
    if side * side != num_tokens - 1:
        raise FormatError(
            f"pos_embed has {num_tokens} positions; "
            "expected 1 + a square, or a header with img_size"
        )
    return side * patch_size[0], side * patch_size[1]


def _some(names: Sequence[str], limit: int = 3) -> str:
    text = ", ".join(shown(name) for name in names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"
