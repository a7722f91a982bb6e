"""Sequences of blocks by their sums: which sums there are, how many ways to each, and draws.

What adds up over blocks does not depend on their order, but on how many there are of each kind: on
the mixture. All mixtures of deep subnets are many, so the kinds are dealt to two halves: every
mixture is then a pair out of two short lists, and all pairs are judged at once. Exact, and pure
functions of integers; what adds up, and what is wanted of the sums, is `limits.py`'s.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from math import comb
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
