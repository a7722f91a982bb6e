"""Costs of subnets and constraints on them: what a space can reach, random subnets that comply.

A cost (parameters, multiply-adds, latency) is a sum of a part for the width and a part for each
block. So the range that a space can reach is exact, and changing one choice of a subnet moves the
cost by little: a random walk of such changes ends up inside windows that random subnets miss.

Pure functions of their arguments and of a seed. Parameters and multiply-adds are counted here;
latency comes from a profile of the machine (`latency/`). The search itself is in `evolution.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from operator import itemgetter

from autoformer_zoo.network.complexity import count_macs, count_params
from autoformer_zoo.space import SearchSpace, SubnetConfig

Block = tuple[int, float]  # heads and MLP ratio
INFINITE = float("inf")
DRAWS = 200  # random subnets to try before one is repaired
WALK_LENGTH = 3000  # single changes to repair a subnet, at about 0.01 ms each
WALKS = 8  # before constraints are refused
# Chance to accept a change for the worse at the beginning of a walk; it falls to 0 at its end.
# Without it many walks get stuck beside a narrow window, and at 0 the corners of a space are found.
ESCAPE = 0.1


@dataclass(frozen=True, slots=True)
class Cost:
    """A cost of subnets that is a sum of a part for the width and a part for each block.

    Args:
        name: used in flags and files; ends in its unit, if it has one.
        rest: raw cost of everything but the blocks, by embed_dim.
        block: raw cost of one block, by embed_dim, heads and MLP ratio.
        scale: raw cost of one unit. Raw costs are whole numbers, so that sums are exact in any
            order and a bound that was printed is met by the subnet it was printed for.
    """

    name: str
    rest: Callable[[int], int]
    block: Callable[[int, int, float], int]
    scale: int = 1

    def value(self, subnet: SubnetConfig) -> float:
        """Return the cost of a subnet in its unit."""
        return self.value_of(*_choices(subnet))

    def value_of(self, dim: int, blocks: Iterable[Block]) -> float:
        """Return the cost of a subnet in its unit, from its width and blocks."""
        return self.to_unit(self.rest(dim) + sum(self.block(dim, *block) for block in blocks))

    def to_unit(self, raw: int) -> float:
        """Convert a raw cost to its unit; whole numbers stay whole."""
        return raw if self.scale == 1 else raw / self.scale


def params_cost(space: SearchSpace) -> Cost:
    """Return the number of parameters as a cost of subnets of `space`."""
    return _counted("params", space, count_params)


def macs_cost(space: SearchSpace) -> Cost:
    """Return the multiply-adds of one image as a cost, in the form of attention used on the CPU."""
    return _counted("macs", space, count_macs)


def _counted(name: str, space: SearchSpace, count: Callable[..., int]) -> Cost:
    sizes = (space.img_size, space.patch_size, space.num_classes)

    @cache
    def block(dim: int, heads: int, ratio: float) -> int:
        one, two = (count(SubnetConfig.uniform(n, dim, heads, ratio), *sizes) for n in (1, 2))
        return two - one

    @cache
    def rest(dim: int) -> int:
        heads, ratio = space.num_heads[0], space.mlp_ratio[0]
        one = count(SubnetConfig.uniform(1, dim, heads, ratio), *sizes)
        return one - block(dim, heads, ratio)

    return Cost(name, rest, block)


@dataclass(frozen=True, slots=True)
class Constraint:
    """A range that a cost has to stay in, both ends included, in the cost's unit.

    Raises:
        ValueError: the range is empty, or an end is NaN.
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

    def violation(self, value: float) -> float:
        """Return how far a cost is outside the range; 0 inside."""
        return max(self.low - value, value - self.high, 0)

    def __str__(self) -> str:
        if self.high == INFINITE:
            return f"{self.cost.name} from {_text(self.low)} on"
        return f"{self.cost.name} from {_text(self.low)} to {_text(self.high)}"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Ranges that the costs of a subnet have to stay in, ends included; all of them at once.

    Raises:
        ValueError: a bound is not a number or below 0, or a range is empty.
    """

    min_params: float = 0  # fewest parameters
    max_params: float = INFINITE  # most parameters
    min_macs: float = 0  # fewest multiply-adds of one image
    max_macs: float = INFINITE  # most multiply-adds of one image
    min_latency_ms: float = 0  # shortest latency of one call
    max_latency_ms: float = INFINITE  # longest latency of one call

    def __post_init__(self) -> None:
        for name in ("params", "macs", "latency_ms"):
            low, high = self.range_of(name)
            for end, value in (("min", low), ("max", high)):
                if not value >= 0:
                    raise ValueError(f"{end}_{name} is {value:g}; expected a number of 0 or more")
            if low > high:
                raise ValueError(
                    f"min_{name} is {low:g} and max_{name} is {high:g}; expected the lower end "
                    "first"
                )

    def range_of(self, name: str) -> tuple[float, float]:
        """Return both ends of a cost's range: params, macs or latency_ms."""
        return getattr(self, f"min_{name}"), getattr(self, f"max_{name}")

    @property
    def constrain_latency(self) -> bool:
        """Whether latency is constrained at all."""
        return self.range_of("latency_ms") != (0, INFINITE)

    def on(self, costs: Iterable[Cost]) -> list[Constraint]:
        """Return the constraints on these costs that exclude anything."""
        ranges = ((cost, *self.range_of(cost.name)) for cost in costs)
        return [Constraint(*each) for each in ranges if each[1:] != (0, INFINITE)]


def reachable(space: SearchSpace, cost: Cost) -> tuple[float, float]:
    """Return the lowest and the highest cost of any subnet of a space; exact."""
    lows, highs = [], []
    for dim in space.embed_dim:
        blocks = [cost.block(dim, *block) for block in product(space.num_heads, space.mlp_ratio)]
        for depth in space.depth:
            lows.append(cost.rest(dim) + depth * min(blocks))
            highs.append(cost.rest(dim) + depth * max(blocks))
    return cost.to_unit(min(lows)), cost.to_unit(max(highs))


class Feasible:
    """The subnets of a space that satisfy all constraints.

    Args:
        space: where subnets are drawn from.
        constraints: ranges of their costs; none for the whole space.

    Raises:
        ValueError: a range is out of reach, and the text has the range that can be reached; or no
            subnet was found that satisfies all of them, and the text has the nearest.
    """

    def __init__(self, space: SearchSpace, constraints: Sequence[Constraint] = ()) -> None:
        self.space = space
        self.constraints = tuple(constraints)
        self._spans = []  # of the ranges that can be reached
        for constraint in self.constraints:
            lowest, highest = reachable(space, constraint.cost)
            if constraint.high < lowest or constraint.low > highest:
                raise ValueError(
                    f"no subnet of the space has {constraint}; the space reaches "
                    f"{_text(lowest)} to {_text(highest)}"
                )
            self._spans.append(highest - lowest or 1)
        rng = random.Random(0)
        drawn = [space.sample(rng) for _ in range(DRAWS if self.constraints else 1)]
        found = list(filter(self.contains, drawn))
        self._is_narrow = not found
        self._example = found[0] if found else self._search(rng)

    def contains(self, subnet: SubnetConfig) -> bool:
        """Return True if a subnet satisfies all constraints; its space is not checked."""
        return self._violation(*_choices(subnet)) == 0

    def sample(self, rng: random.Random) -> SubnetConfig:
        """Draw a random subnet that satisfies the constraints.

        Wide ranges are drawn from as `SearchSpace.sample` does, given that the constraints hold. In
        narrow ones a random subnet is changed until it complies, so some subnets come more often
        than others. It always returns, if need be a subnet that it returned before.
        """
        for _ in range(0 if self._is_narrow else DRAWS):
            subnet = self.space.sample(rng)
            if self.contains(subnet):
                return subnet
        repaired = self._walk(self.space.sample(rng), rng)
        return repaired if self.contains(repaired) else self._example

    def _search(self, rng: random.Random) -> SubnetConfig:
        """Find a first subnet that complies, or explain how near one came."""
        ends = []
        for _ in range(WALKS):
            ends.append(self._walk(self.space.sample(rng), rng))
            if self.contains(ends[-1]):
                return ends[-1]
        nearest = min(ends, key=lambda subnet: self._violation(*_choices(subnet)))
        costs = [constraint.cost for constraint in self.constraints]
        raise ValueError(
            f"no subnet found that has {' and '.join(map(str, self.constraints))}; the nearest has "
            + ", ".join(f"{cost.name} {_text(cost.value(nearest))}" for cost in costs)
            + ": widen a range"
        )

    def _walk(self, start: SubnetConfig, rng: random.Random) -> SubnetConfig:
        """Change one choice after the other, towards the constraints; returns the nearest."""
        dim, blocks = _choices(start)
        violation = self._violation(dim, blocks)
        nearest = violation, dim, blocks
        for step in range(WALK_LENGTH):
            if not violation:
                break
            changed = _change_one(dim, blocks, self.space, rng)
            after = self._violation(*changed)
            if after <= violation or rng.random() < ESCAPE * (1 - step / WALK_LENGTH):
                (dim, blocks), violation = changed, after
                nearest = min(nearest, (violation, dim, blocks), key=itemgetter(0))
        _, dim, blocks = nearest
        heads, ratios = zip(*blocks, strict=True)
        return SubnetConfig(len(blocks), dim, heads, ratios)

    def _violation(self, dim: int, blocks: list[Block]) -> float:
        """Sum the violations, each as a share of what the space reaches: units differ by far."""
        total = 0.0
        for constraint, span in zip(self.constraints, self._spans, strict=True):
            total += constraint.violation(constraint.cost.value_of(dim, blocks)) / span
        return total


def _choices(subnet: SubnetConfig) -> tuple[int, list[Block]]:
    """Return a subnet's width and blocks: a walk makes thousands, too many for whole configs."""
    return subnet.embed_dim, list(zip(subnet.num_heads, subnet.mlp_ratio, strict=True))


def _change_one(
    dim: int, blocks: list[Block], space: SearchSpace, rng: random.Random
) -> tuple[int, list[Block]]:
    """Draw one choice again: the width, the depth, or the heads and MLP ratio of one block."""

    def draw_block() -> Block:
        return rng.choice(space.num_heads), rng.choice(space.mlp_ratio)

    place = rng.randrange(len(blocks) + 2)
    if place < len(blocks):
        return dim, [*blocks[:place], draw_block(), *blocks[place + 1 :]]
    if place == len(blocks):
        return rng.choice(space.embed_dim), blocks
    depth = rng.choice(space.depth)
    return dim, blocks[:depth] + [draw_block() for _ in range(depth - len(blocks))]


def _text(value: float) -> str:
    """Write a number in full, so that it can be given back as a bound."""
    return f"{int(value) if float(value).is_integer() else value:,}"
