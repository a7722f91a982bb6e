"""Limits on the costs of subnets: what a space can reach, and subnets drawn within limits.

Every cost here adds up: a part for the width, and a part for each block. So the range that a space
can reach is exact, whether any subnet keeps several limits at once is exact, and a subnet within
the narrowest of limits is drawn without trial and error (`constraints.py`). Pure functions of
integers; what a cost is (parameters, multiply-adds, latency) is `costs.py`'s, the search is
`evolution.py`'s.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from math import comb
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoformer_zoo.space import SearchSpace, SubnetConfig

INFINITE = float("inf")
REJECTIONS = 200  # draws from the whole space, one of which is within unless limits are narrow
WIDE = 10  # of these draws within limits that are not narrow: rejecting the others is quick

Block = tuple[int, float]  # heads and MLP ratio


@dataclass(frozen=True, slots=True)
class Cost:
    """A cost of subnets that is a sum: of a part for the width, and a part for each block.

    Args:
        name: what it is called in flags and files, with its unit.
        rest: units of everything but the blocks, by embed_dim.
        block: units of one block, by embed_dim, heads and MLP ratio.
        scale: units in one of what the name says: costs are counted in whole units, so that sums
            are exact in any order.
    """

    name: str
    rest: Callable[[int], int]
    block: Callable[[int, int, float], int]
    scale: int = 1

    def units(self, subnet: SubnetConfig) -> int:
        """Return the cost of a subnet in units."""
        blocks = zip(subnet.num_heads, subnet.mlp_ratio, strict=True)
        dim = subnet.embed_dim
        return self.rest(dim) + sum(self.block(dim, heads, ratio) for heads, ratio in blocks)

    def of(self, subnet: SubnetConfig) -> float:
        """Return the cost of a subnet in what the name says."""
        return self.shown(self.units(subnet))

    def shown(self, units: int) -> float:
        """Turn units into what the name says; whole numbers stay whole."""
        return units if self.scale == 1 else units / self.scale


@dataclass(frozen=True, slots=True)
class Limit:
    """A range that a cost has to stay in, both ends included, in what the cost's name says.

    Raises:
        ValueError: the range is empty or not made of numbers.
    """

    cost: Cost
    low: float = 0
    high: float = INFINITE

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(
                f"{self.cost.name} from {self.low:g} to {self.high:g} is empty; "
                "expected the lower end first"
            )

    def keeps(self, subnet: SubnetConfig) -> bool:
        """Tell whether a subnet is within."""
        return bool(self.holds(self.cost.units(subnet)))

    def holds(self, units: Any) -> Any:  # int or an array of them; bool or an array
        """Tell whether a cost in units is within."""
        shown = self.cost.shown(units)
        return (self.low <= shown) & (shown <= self.high)

    def __str__(self) -> str:
        if self.high == INFINITE:
            return f"{self.cost.name} from {_text(self.low)} on"
        return f"{self.cost.name} from {_text(self.low)} to {_text(self.high)}"


def reachable(space: SearchSpace, cost: Cost) -> tuple[float, float]:
    """Return the least and the greatest cost of any subnet of a space; exact."""
    lows, highs = [], []
    for dim in space.embed_dim:
        parts = [cost.block(dim, *block) for block in _blocks(space)]
        for depth in space.depth:
            lows.append(cost.rest(dim) + depth * min(parts))
            highs.append(cost.rest(dim) + depth * max(parts))
    return cost.shown(min(lows)), cost.shown(max(highs))


class Feasible:
    """The subnets of a space that keep all limits.

    Args:
        space: where subnets are drawn from.
        limits: ranges of their costs; none for the whole space.

    Raises:
        ValueError: no subnet keeps them, and the text says what can be reached; or few do, and the
            space has too many different costs to count them.
    """

    def __init__(self, space: SearchSpace, limits: Sequence[Limit] = ()) -> None:
        self.space = space
        self.limits = tuple(limits)
        for limit in self.limits:
            least, most = reachable(space, limit.cost)
            if limit.high < least or limit.low > most:
                raise ValueError(
                    f"no subnet of the space has {limit}; it reaches {_text(least)} to "
                    f"{_text(most)}"
                )
        rng = random.Random(0)
        tried = REJECTIONS if self.limits else 0
        within = sum(self.keeps(space.sample(rng)) for _ in range(tried))
        self.is_narrow = within < min(WIDE, tried)
        if self.is_narrow and not self.count:
            raise ValueError(self._conflict())

    def keeps(self, subnet: SubnetConfig) -> bool:
        """Tell whether a subnet keeps all limits."""
        return all(limit.keeps(subnet) for limit in self.limits)

    def sample(self, rng: random.Random) -> SubnetConfig:
        """Draw a subnet as `SearchSpace.sample` does, given that it keeps the limits.

        Always ends: where few subnets keep the limits, they are counted and drawn from exactly.
        """
        for _ in range(0 if self.is_narrow else REJECTIONS):
            subnet = self.space.sample(rng)
            if self.keeps(subnet):
                return subnet
        return self._drawn_exactly(rng)

    @cached_property
    def count(self) -> int:
        """Number of subnets within the limits; exact."""
        return sum(mixtures.count for *_, mixtures in self._mixtures)

    def is_exhausted_by(self, seen: int) -> bool:
        """Tell whether so many different subnets are all; only narrow limits are counted for it."""
        return self.is_narrow and seen >= self.count

    def _drawn_exactly(self, rng: random.Random) -> SubnetConfig:
        # As rejection would: every (width, depth) by the share of its subnets that is within.
        kinds = _blocks(self.space)
        shares = [mixtures.count / len(kinds) ** depth for _, depth, mixtures in self._mixtures]
        dim, depth, mixtures = rng.choices(self._mixtures, shares)[0]
        heads, ratios = zip(*(kinds[kind] for kind in mixtures.sample(rng)), strict=True)
        return SubnetConfig(depth, dim, heads, ratios)

    @cached_property
    def _mixtures(self) -> list[tuple[int, int, Mixtures]]:
        return self._mixtures_within(self.limits)

    def _mixtures_within(self, limits: Sequence[Limit]) -> list[tuple[int, int, Mixtures]]:
        """Return the blocks of every width and depth, within limits on the same costs."""
        found = []
        for dim in self.space.embed_dim:
            rests = [limit.cost.rest(dim) for limit in limits]
            for depth in self.space.depth:
                within = partial(_within, limits, rests)
                found.append((dim, depth, Mixtures(self._halves[dim], depth, within)))
        return found

    @cached_property
    def _halves(self) -> dict[int, tuple[Half, Half]]:
        """The kinds of blocks of every width in two halves."""
        kinds, costs = _blocks(self.space), [limit.cost for limit in self.limits]
        halves = {}
        for dim in self.space.embed_dim:
            steps = [tuple(cost.block(dim, *kind) for cost in costs) for kind in kinds]
            parts = steps[: len(steps) // 2], steps[len(steps) // 2 :]
            one, other = (Half(part, len(costs), self.space.depth[-1]) for part in parts)
            halves[dim] = one, other
        return halves

    def _conflict(self) -> str:
        """Say how far the limits are apart, each against the others."""
        reaches = []
        for i, limit in enumerate(self.limits):
            if (reach := self._reach_beside(i)) is not None:
                reaches.append(f"{limit.cost.name} {_text(reach[0])} to {_text(reach[1])}")
        asked = " and ".join(map(str, self.limits))
        if not reaches:
            return f"no subnet of the space has {asked}, nor all but one of these"
        if len(self.limits) == 1:
            return f"no subnet of the space has {asked}: it lies in a gap of {reaches[0]}; widen it"
        return f"no subnet of the space has {asked}; within the other limits: {', '.join(reaches)}"

    def _reach_beside(self, index: int) -> tuple[float, float] | None:
        """Return the least and greatest of one cost within the limits on the others, if any."""
        cost = self.limits[index].cost
        loose = [
            Limit(each.cost, -INFINITE, INFINITE) if i == index else each
            for i, each in enumerate(self.limits)
        ]
        ends = [
            cost.rest(dim) + end
            for dim, _, mixtures in self._mixtures_within(loose)
            for end in mixtures.extent(index)
        ]
        return (cost.shown(min(ends)), cost.shown(max(ends))) if ends else None


def _within(
    limits: Sequence[Limit], rests: Sequence[int], sums: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Tell which sums over blocks (..., limits) keep all limits, with the rest of the network."""
    mask = np.ones(sums.shape[:-1], np.bool_)
    for i, (limit, rest) in enumerate(zip(limits, rests, strict=True)):
        mask &= limit.holds(rest + sums[..., i])
    return mask


def every_subnet(space: SearchSpace) -> Iterator[SubnetConfig]:
    """Yield all subnets of a space; for small ones."""
    from itertools import product

    for dim in space.embed_dim:
        for depth in space.depth:
            for blocks in product(_blocks(space), repeat=depth):
                heads, ratios = zip(*blocks, strict=True)
                yield SubnetConfig(depth, dim, heads, ratios)


def _blocks(space: SearchSpace) -> list[Block]:
    return [(heads, ratio) for heads in space.num_heads for ratio in space.mlp_ratio]


def _text(value: float) -> str:
    """Write a number in full: what is told to be reachable must be."""
    return f"{int(value) if float(value).is_integer() else value:,}"


Sums = tuple[int, ...]  # of every cost


Within = Callable[[NDArray[np.int64]], NDArray[np.bool_]]
"""Judges sums (..., costs); returns a mask (...)."""


MOST_SUMS = 500_000  # of a half; the largest of a published space has 12,000


MOST_PAIRS = 1 << 20  # judged at a time


class Half:
    """Mixtures of up to `depth` blocks of some kinds.

    `_layers[j][k][sums]` counts the sequences of k blocks of the first j kinds with these sums.

    Args:
        steps: what a block of each kind adds to every cost.
        costs: number of costs.
        depth: most blocks.

    Raises:
        ValueError: there are more than `MOST_SUMS` different sums.
    """

    def __init__(self, steps: Sequence[Sums], costs: int, depth: int) -> None:
        self._steps = steps
        self._layers: list[list[dict[Sums, int]]] = [
            [{(0,) * costs: 1}, *({} for _ in range(depth))]
        ]
        for step in steps:
            self._layers.append([_with_kind(self._layers[-1], step, k) for k in range(depth + 1)])
            if sum(map(len, self._layers[-1])) > MOST_SUMS:
                raise ValueError(
                    "limits that few subnets keep need all sums of costs to be counted, and the "
                    f"space has more than {MOST_SUMS:,}: widen the limits, or give the space fewer "
                    "choices of num_heads and mlp_ratio"
                )
        self.sums = [
            np.array(list(each), np.int64).reshape(len(each), costs) for each in self._layers[-1]
        ]
        self.ways = [_integers(list(each.values())) for each in self._layers[-1]]

    def __len__(self) -> int:
        return len(self._steps)

    def sample(self, count: int, row: int, rng: random.Random) -> list[int]:
        """Draw a mixture of `count` blocks with the sums of a row; returns the blocks' kinds."""
        sums = tuple(self.sums[count][row].tolist())
        drawn: list[int] = []
        for kind in reversed(range(len(self._steps))):
            step, layer = self._steps[kind], self._layers[kind]
            rests = [
                tuple(s - n * t for s, t in zip(sums, step, strict=True)) for n in range(count + 1)
            ]
            ways = [comb(count, n) * layer[count - n].get(rest, 0) for n, rest in enumerate(rests)]
            taken = rng.choices(range(count + 1), ways)[0]
            drawn += [kind] * taken
            count, sums = count - taken, rests[taken]
        return drawn


class Mixtures:
    """Sequences of `depth` blocks whose sums are within limits.

    Args:
        halves: of the kinds of blocks.
        depth: number of blocks.
        within: tells which sums are wanted.
    """

    def __init__(self, halves: tuple[Half, Half], depth: int, within: Within) -> None:
        self._halves, self._depth, self._within = halves, depth, within
        self._rows: list[tuple[int, int]] = []  # blocks of the first half, and which of its sums
        ways: list[int] = []
        for count, rows, _, mask in self._pairs():
            others = halves[1].ways[depth - count]
            for row, right in zip(rows, (mask @ others).tolist(), strict=True):
                if right:
                    self._rows.append((count, row))
                    left = int(halves[0].ways[count][row])
                    ways.append(comb(depth, count) * left * right)  # interleaved in any order
        self._cumulated = list(accumulate(ways))

    @property
    def count(self) -> int:
        """Number of these sequences."""
        return self._cumulated[-1] if self._cumulated else 0

    def sample(self, rng: random.Random) -> list[int]:
        """Draw one of these sequences, all with the same chance; returns the blocks' kinds."""
        one, other = self._halves
        count, row = rng.choices(self._rows, cum_weights=self._cumulated)[0]
        left = self._depth - count
        fitting = np.flatnonzero(self._within(one.sums[count][row] + other.sums[left])).tolist()
        partner = rng.choices(fitting, other.ways[left][fitting].tolist())[0]
        drawn = one.sample(count, row, rng)
        drawn += [len(one) + kind for kind in other.sample(left, partner, rng)]
        rng.shuffle(drawn)
        return drawn

    def extent(self, cost: int) -> list[int]:
        """Return the least and the greatest sum of one cost; empty where there is no sequence."""
        found = [sums[..., cost][mask] for _, _, sums, mask in self._pairs() if mask.any()]
        ends = [int(end) for each in found for end in (each.min(), each.max())]
        return [min(ends), max(ends)] if ends else []

    def _pairs(self) -> Iterator[tuple[int, range, NDArray[np.int64], NDArray[np.bool_]]]:
        """Yield blocks and rows of the first half, their sums with the others, which are within.

        Shapes: sums (rows, others, costs), mask (rows, others).
        """
        one, other = self._halves
        for count in range(self._depth + 1):
            ones, others = one.sums[count], other.sums[self._depth - count]
            step = max(1, MOST_PAIRS // max(1, len(others)))
            for start in range(0, len(ones), step):
                sums = ones[start : start + step, None] + others
                yield count, range(start, start + len(sums)), sums, self._within(sums)


def _with_kind(layer: Sequence[dict[Sums, int]], step: Sums, count: int) -> dict[Sums, int]:
    """Return the sums of `count` blocks, of which any number are of one more kind."""
    reached: dict[Sums, int] = {}
    for new in range(count + 1):
        added, orders = tuple(new * each for each in step), comb(count, new)
        for sums, ways in layer[count - new].items():
            after = tuple(map(add, sums, added))
            reached[after] = reached.get(after, 0) + ways * orders
    return reached


def _integers(values: list[int]) -> NDArray[Any]:
    """Return an array in which no sum of some of the values overflows."""
    return np.array(values, np.int64 if sum(values) < 1 << 63 else object)
