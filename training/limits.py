"""Limits on the costs of subnets: what a space can reach, and subnets drawn within limits.

Every cost here adds up: a part for the width, and a part for each block. So the range that a space
can reach is exact, whether any subnet keeps several limits at once is exact, and a subnet within
the narrowest of limits is drawn without trial and error. Pure functions of integers; what a cost
is (parameters, multiply-adds, latency) is `costs.py`'s, the search is `evolution.py`'s.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from autoformer_zoo.space import SearchSpace, SubnetConfig

REJECTIONS = 200  # draws from the whole space before the exact way, which costs more, is taken

State = tuple[int, ...]  # units of every limited cost, summed over the blocks so far
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
    high: float = float("inf")

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(
                f"{self.cost.name} from {self.low:g} to {self.high:g} is empty; "
                "expected the lower end first"
            )

    def keeps(self, subnet: SubnetConfig) -> bool:
        """Tell whether a subnet is within."""
        return self.low <= self.cost.of(subnet) <= self.high

    def __str__(self) -> str:
        if self.high == float("inf"):
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
        ValueError: no subnet keeps them; the text says what can be reached.
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
        if self._drawn(random.Random(0)) is None and not self.count:
            raise ValueError(self._conflict())

    def keeps(self, subnet: SubnetConfig) -> bool:
        """Tell whether a subnet keeps all limits."""
        return all(limit.keeps(subnet) for limit in self.limits)

    def sample(self, rng: random.Random) -> SubnetConfig:
        """Draw a subnet as `SearchSpace.sample` does, given that it keeps the limits.

        Always ends: where few subnets keep the limits, they are counted and drawn from exactly.
        """
        drawn = self._drawn(rng)
        return self._drawn_exactly(rng) if drawn is None else drawn

    @cached_property
    def count(self) -> int:
        """Number of subnets within the limits; exact."""
        return sum(sum(table.final.values()) for table in self._tables)

    def cost_range(self, index: int) -> tuple[float, float] | None:
        """Return the least and greatest of one limited cost within the limits; None for none."""
        cost = self.limits[index].cost
        units = [
            cost.rest(table.embed_dim) + state[index]
            for table in self._tables
            for state in table.final
        ]
        return (cost.shown(min(units)), cost.shown(max(units))) if units else None

    def _drawn(self, rng: random.Random) -> SubnetConfig | None:
        for _ in range(REJECTIONS if self.limits else 1):
            subnet = self.space.sample(rng)
            if self.keeps(subnet):
                return subnet
        return None

    def _drawn_exactly(self, rng: random.Random) -> SubnetConfig:
        tables = [table for table in self._tables if table.final]
        kinds = len(self.space.num_heads) * len(self.space.mlp_ratio)
        # As rejection would: every (width, depth) by the share of its subnets that is within.
        weights = [sum(table.final.values()) / kinds**table.depth for table in tables]
        return rng.choices(tables, weights)[0].sample(rng)

    @cached_property
    def _tables(self) -> list[_Table]:
        return [
            _Table(self.space, self.limits, dim, depth)
            for dim in self.space.embed_dim
            for depth in self.space.depth
        ]

    def _conflict(self) -> str:
        """Say how far the limits are apart, each against the others."""
        reaches = []
        for i, limit in enumerate(self.limits):
            loose = [Limit(e.cost) if i == j else e for j, e in enumerate(self.limits)]
            found = object.__new__(Feasible)  # its constructor would end here again
            found.space, found.limits = self.space, tuple(loose)
            if (reach := found.cost_range(i)) is not None:
                reaches.append(f"{limit.cost.name} {_text(reach[0])} to {_text(reach[1])}")
        asked = " and ".join(map(str, self.limits))
        if not reaches:
            return f"no subnet of the space has {asked}, nor all but one of these"
        if len(self.limits) == 1:
            return f"no subnet of the space has {asked}: it lies in a gap of {reaches[0]}; widen it"
        return f"no subnet of the space has {asked}; within the other limits: {', '.join(reaches)}"


class _Table:
    """How many sequences of blocks lead to which costs, for one width and depth.

    `ways[k][state]` counts the sequences of k blocks that sum up to `state`; states from which the
    limits cannot be kept any more are left out.
    """

    def __init__(
        self, space: SearchSpace, limits: Sequence[Limit], embed_dim: int, depth: int
    ) -> None:
        self.embed_dim, self.depth = embed_dim, depth
        self.blocks = _blocks(space)
        self.steps = [
            tuple(e.cost.block(embed_dim, *block) for e in limits) for block in self.blocks
        ]
        rests = [limit.cost.rest(embed_dim) for limit in limits]
        least = [min(step[i] for step in self.steps) for i in range(len(limits))]
        most = [max(step[i] for step in self.steps) for i in range(len(limits))]

        def may_end_within(state: State, left: int) -> bool:
            return all(
                limit.cost.shown(rests[i] + state[i] + left * least[i]) <= limit.high
                and limit.cost.shown(rests[i] + state[i] + left * most[i]) >= limit.low
                for i, limit in enumerate(limits)
            )

        self.ways: list[dict[State, int]] = [{(0,) * len(limits): 1}]
        for left in reversed(range(depth)):
            reached: dict[State, int] = {}
            for state, ways in self.ways[-1].items():
                for step in self.steps:
                    after = tuple(map(int.__add__, state, step))
                    reached[after] = reached.get(after, 0) + ways
            kept = {state: ways for state, ways in reached.items() if may_end_within(state, left)}
            self.ways.append(kept)

    @property
    def final(self) -> dict[State, int]:
        """Sequences of all blocks, by their costs, that keep the limits."""
        return self.ways[-1]

    def sample(self, rng: random.Random) -> SubnetConfig:
        """Draw one of these sequences, all with the same chance."""
        state = rng.choices(list(self.final), list(self.final.values()))[0]
        drawn: list[Block] = []
        for before in reversed(self.ways[:-1]):
            origins = [tuple(map(int.__sub__, state, step)) for step in self.steps]
            taken = rng.choices(range(len(origins)), [before.get(o, 0) for o in origins])[0]
            drawn.append(self.blocks[taken])
            state = origins[taken]
        heads, ratios = zip(*drawn, strict=True)
        return SubnetConfig(self.depth, self.embed_dim, heads, ratios)


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
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
