"""Subnets and search spaces as plain data.

`SubnetConfig` describes one static network, `SearchSpace` the subnets that a supernet was trained
for, and `from_mapping` reads both, and any other dataclass, from JSON. Standard library only:
everything else in the package depends on this file, and this file on nothing. The published spaces
and subnets are in `published.py`.

Source: AutoFormer (arXiv 2107.00651), section 3.1 and table 1.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

HEAD_DIM = 64  # the width of a head never changes: q, k and v of a layer are 64 * num_heads wide
SCALE = HEAD_DIM**-0.5
MAX_DISTANCE = 14  # relative positions are clamped to -14..14 rows and columns
NUM_REL_POS = 2 * MAX_DISTANCE + 2  # rows of a relative position table; row 0 serves pairs with CLS

# What a config from elsewhere may ask for; a hundred times the published ones.
MAX_DEPTH, MAX_WIDTH = 1024, 65536

T = TypeVar("T")


class _JsonConfig:
    """A dataclass that is kept as JSON."""

    __slots__ = ()
    _kind: ClassVar[str]  # for messages

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict; `from_dict` is the inverse."""
        values: dict[str, Any] = json.loads(self.to_json())
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a config from `to_dict`'s output.

        Raises:
            ValueError: a key is unknown or missing, or a value is refused.
        """
        return from_mapping(cls, values)

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Make a config from `to_json`'s output; raises ValueError as `from_dict` does."""
        try:
            values = json.loads(text)
        except Exception as error:  # besides its own, a RecursionError for deep nesting
            raise ValueError(f"{cls._kind} is not JSON: {error}") from None
        return from_mapping(cls, values)


@dataclass(frozen=True, slots=True)
class SubnetConfig(_JsonConfig):
    """One static AutoFormer: what the supernet is sliced to.

    Args:
        depth: number of blocks.
        embed_dim: width of the residual stream, one per subnet.
        num_heads: attention heads of each block, `depth` numbers.
        mlp_ratio: hidden width of each block's MLP over `embed_dim`, `depth` numbers.

    Raises:
        ValueError: a number is not positive or absurdly large, or a tuple's length is not `depth`.
    """

    _kind: ClassVar[str] = "a subnet config"

    depth: int
    embed_dim: int
    num_heads: tuple[int, ...]
    mlp_ratio: tuple[float, ...]

    def __post_init__(self) -> None:
        _require_positive_int("depth", self.depth)
        _require_positive_int("embed_dim", self.embed_dim)
        for name, most in (("depth", MAX_DEPTH), ("embed_dim", MAX_WIDTH)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} is {getattr(self, name)!r:.80}; expected at most {most}")
        for name in ("num_heads", "mlp_ratio"):
            values = getattr(self, name)
            if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
                raise ValueError(
                    f"{name} is {values!r:.80}; expected {self.depth} numbers, one a block"
                )
            values = tuple(values)
            if len(values) != self.depth:
                raise ValueError(
                    f"{name} has {len(values)} entries; expected depth={self.depth}, one a block"
                )
            object.__setattr__(self, name, values)
        for heads in self.num_heads:
            _require_positive_int("num_heads", heads)
        for ratio in self.mlp_ratio:
            is_number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
            if not is_number or not 0 < ratio < 1e6:
                raise ValueError(f"mlp_ratio holds {ratio!r:.80}; expected positive numbers")
        object.__setattr__(self, "mlp_ratio", tuple(float(ratio) for ratio in self.mlp_ratio))
        if max(*self.attn_dims, *self.hidden_dims) > 16 * MAX_WIDTH:
            raise ValueError(
                f"num_heads or mlp_ratio ask for {max(*self.attn_dims, *self.hidden_dims)} "
                f"channels in a block; expected at most {16 * MAX_WIDTH}"
            )
        if min(self.hidden_dims) < 1:
            raise ValueError(
                f"mlp_ratio {min(self.mlp_ratio)} of embed_dim {self.embed_dim} leaves no hidden "
                "channel; expected a larger one"
            )

    @classmethod
    def uniform(cls, depth: int, embed_dim: int, num_heads: int, mlp_ratio: float) -> SubnetConfig:
        """Make a config whose blocks are all the same."""
        return cls(depth, embed_dim, (num_heads,) * depth, (mlp_ratio,) * depth)

    @property
    def hidden_dims(self) -> tuple[int, ...]:
        """Hidden width of each block's MLP, rounded down as upstream does."""
        return tuple(int(self.embed_dim * ratio) for ratio in self.mlp_ratio)

    @property
    def attn_dims(self) -> tuple[int, ...]:
        """Width of q, k and v in each block: 64 a head, whatever `embed_dim` is."""
        return tuple(HEAD_DIM * heads for heads in self.num_heads)


@dataclass(frozen=True, slots=True)
class SearchSpace(_JsonConfig):
    """The subnets that a supernet is trained for.

    Args:
        embed_dim: choices of the width; a subnet has one.
        num_heads: choices of the number of heads, drawn for each block.
        mlp_ratio: choices of the MLP ratio, drawn for each block.
        depth: choices of the number of blocks.
        supernet: the network whose weights the subnets share. It may be larger than `largest`:
            upstream's tiny supernet is 256 wide, its widest subnet 240.
        img_size: trained input side in pixels.
        patch_size: patch side in pixels.
        num_classes: classes of the trained head.

    Raises:
        ValueError: a choice is missing or repeated, or the largest subnet does not fit the
            supernet.
    """

    _kind: ClassVar[str] = "a search space"

    embed_dim: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_ratio: tuple[float, ...]
    depth: tuple[int, ...]
    supernet: SubnetConfig
    img_size: int = 224
    patch_size: int = 16
    num_classes: int = 1000

    def __post_init__(self) -> None:
        if not isinstance(self.supernet, SubnetConfig):  # as it comes from JSON
            object.__setattr__(self, "supernet", SubnetConfig.from_dict(self.supernet))
        for name in ("embed_dim", "num_heads", "mlp_ratio", "depth"):
            object.__setattr__(self, name, _sorted_choices(name, getattr(self, name)))
        for name in ("img_size", "patch_size", "num_classes"):
            _require_positive_int(name, getattr(self, name))
        # Depth first: `largest` has a tuple entry per block, and a file may claim billions.
        too_deep = self.depth[-1] > self.supernet.depth
        problem = f"depth {self.depth[-1]}" if too_deep else misfit(self.largest, self.supernet)
        if problem:
            raise ValueError(
                f"the largest subnet of the space does not fit its supernet: {problem}"
            )

    @property
    def smallest(self) -> SubnetConfig:
        """The smallest subnet."""
        return SubnetConfig.uniform(
            self.depth[0], self.embed_dim[0], self.num_heads[0], self.mlp_ratio[0]
        )

    @property
    def largest(self) -> SubnetConfig:
        """The largest subnet."""
        return SubnetConfig.uniform(
            self.depth[-1], self.embed_dim[-1], self.num_heads[-1], self.mlp_ratio[-1]
        )

    @property
    def size(self) -> int:
        """Number of different subnets."""
        per_block = len(self.num_heads) * len(self.mlp_ratio)
        return len(self.embed_dim) * sum(int(per_block**depth) for depth in self.depth)

    def contains(self, subnet: SubnetConfig) -> bool:
        """Return True if every size of `subnet` is one of the choices.

        Not the same as fitting the supernet (`misfit`): the published tiny subnet has MLP ratios of
        3.0, which its own space does not have, and can be extracted all the same.
        """
        return (
            subnet.depth in self.depth
            and subnet.embed_dim in self.embed_dim
            and set(subnet.num_heads) <= set(self.num_heads)
            and set(subnet.mlp_ratio) <= set(self.mlp_ratio)
        )

    def sample(self, rng: random.Random) -> SubnetConfig:
        """Draw depth and width uniformly, then heads and MLP ratio of each block.

        Args:
            rng: source of randomness; the same state gives the same subnet.
        """
        depth = rng.choice(self.depth)
        return SubnetConfig(
            depth=depth,
            embed_dim=rng.choice(self.embed_dim),
            num_heads=tuple(rng.choice(self.num_heads) for _ in range(depth)),
            mlp_ratio=tuple(rng.choice(self.mlp_ratio) for _ in range(depth)),
        )


def misfit(subnet: SubnetConfig, supernet: SubnetConfig) -> str | None:
    """Describe the first size in which `subnet` exceeds `supernet`; None if it fits.

    Fitting is all that extraction needs: each tensor of the subnet is a corner of the supernet's.

    Returns:
        The layer, what it needs and what the supernet has.
    """
    if subnet.depth > supernet.depth:
        return (
            f"depth {subnet.depth} needs {subnet.depth} blocks, the supernet has {supernet.depth}"
        )
    if subnet.embed_dim > supernet.embed_dim:
        return (
            f"embed_dim {subnet.embed_dim} needs that width in every layer, "
            f"the supernet has {supernet.embed_dim}"
        )
    for i in range(subnet.depth):
        if subnet.num_heads[i] > supernet.num_heads[i]:
            return (
                f"blocks.{i}.attn needs {subnet.num_heads[i]} heads, "
                f"the supernet has {supernet.num_heads[i]}"
            )
        if subnet.hidden_dims[i] > supernet.hidden_dims[i]:
            return (
                f"blocks.{i}.mlp needs {subnet.hidden_dims[i]} hidden channels "
                f"(embed_dim {subnet.embed_dim} x mlp_ratio {subnet.mlp_ratio[i]}), "
                f"the supernet has {supernet.hidden_dims[i]}"
            )
    return None


def from_mapping(cls: type[T], values: object) -> T:
    """Make a dataclass of the object that its JSON holds; lists become tuples.

    Raises:
        ValueError: `values` is not a mapping, a key is unknown or missing, or the class refuses a
            value, by whatever exception.
    """
    if not isinstance(values, Mapping):
        kind = type(values).__name__
        raise ValueError(f"expected an object with the keys of {cls.__name__}, got a {kind}")
    known = fields(cls)  # type: ignore[arg-type]
    names = [field.name for field in known]
    unknown = sorted(str(key)[:80] for key in values if key not in names)[:5]
    missing = [f.name for f in known if f.default is f.default_factory and f.name not in values]
    if unknown or missing:
        raise ValueError(
            f"{cls.__name__}: unknown keys {unknown}, missing keys {missing}; expected {names}"
        )
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except ValueError:
        raise
    except Exception as error:  # a value so odd that the class's own checks tripped over it
        raise ValueError(f"{cls.__name__} cannot be made: {error}") from error


def _sorted_choices(name: str, given: Any) -> tuple[Any, ...]:  # numbers, unless a file is wrong
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ValueError(f"{name} is {given!r:.80}; expected a list of choices")
    choices = list(given)
    kinds = (int, float) if name == "mlp_ratio" else (int,)
    for choice in choices:
        if isinstance(choice, bool) or not isinstance(choice, kinds):
            raise ValueError(f"{name} holds {choice!r:.80}; expected positive numbers")
    choices.sort()
    if not choices or len(set(choices)) != len(choices) or not choices[0] > 0:
        raise ValueError(f"{name} is {choices}; expected one or more different positive numbers")
    return tuple(map(float, choices)) if name == "mlp_ratio" else tuple(choices)


def _require_positive_int(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r:.80}; expected a positive whole number")
