"""The search: evolution, then the exact optimum of additive models.

If a score is a sum over blocks, the best subnet of one depth and width is found by dynamic
programming (`solve`): block after block, the best partial sum for each cost so far is kept. Costs
are sums over blocks themselves (`constraints.Cost`). `refine` uses it for any score: it linearises
the score around a subnet (what changing one block changes), solves that model exactly within the
bounds, and goes on from there. For an additive score this ends at the optimum after one step; for
others evolution finds where to begin. Pure functions, as `evolution.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.specialization.constraints import Block, Constraint, Feasible
from autoformer_zoo.specialization.evolution import (
    DEFAULT_EVOLUTION,
    Candidate,
    EvolutionConfig,
    Scorer,
    best,
    evolve,
)

Array = NDArray[np.float64]
BUCKETS = 4096  # partial subnets that are kept after each block; more than a space needs for params
STEPS = 8  # of a refinement; two or three are usual
PROPOSED = 8  # subnets of each solved model that are scored
STARTS = 2  # subnets of each depth and width that are refined


def solve(
    gains: Array,
    costs: Sequence[Array],
    bounds: Sequence[tuple[float, float]],
    count: int = 1,
) -> list[tuple[int, ...]]:
    """Choose one kind for each block so that the gains' sum is largest within the bounds.

    Exact if no more than `BUCKETS` different costs occur at any block; otherwise partial choices
    whose costs differ by less than a bucket compete, and the result is within that of the optimum.

    Args:
        gains: (blocks, kinds).
        costs: for each bounded cost, what each kind costs: (kinds,).
        bounds: the range of each cost's sum, ends included.
        count: choices to return, best first; of two with equal costs only the better one.

    Returns:
        A kind for each block; fewer than `count` if no others are within the bounds.
    """
    blocks, kinds = gains.shape
    table = np.array(costs, dtype=float).reshape(len(costs), kinds)  # (costs, kinds)
    lows, highs = (np.array([b[i] for b in bounds], dtype=float) for i in (0, 1))
    totals, spent = np.zeros(1), np.zeros((len(costs), 1))
    history: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []  # parent and kind by block
    for i in range(blocks):
        left = blocks - i - 1
        new_totals = (totals[:, None] + gains[i]).ravel()
        new_spent = (spent[:, :, None] + table[:, None, :]).reshape(len(costs), new_totals.size)
        least = new_spent + left * table.min(1)[:, None]
        most = new_spent + left * table.max(1)[:, None]
        can_comply = ((least <= highs[:, None]) & (most >= lows[:, None])).all(0)
        chosen = np.flatnonzero(can_comply)
        chosen = chosen[_best_by_cost(new_totals[chosen], new_spent[:, chosen])]
        history.append((chosen // kinds, chosen % kinds))
        totals, spent = new_totals[chosen], new_spent[:, chosen]
    choices = []
    for place in np.argsort(-totals, kind="stable")[:count]:
        picked = []
        for parents, kind in reversed(history):
            picked.append(int(kind[place]))
            place = parents[place]
        choices.append(tuple(reversed(picked)))
    return choices


def _best_by_cost(totals: Array, spent: Array) -> NDArray[np.intp]:
    """Return the positions of the largest total for each cost, or for each bucket of costs."""
    order = np.argsort(-totals, kind="stable")
    if not len(spent):
        return order[:1]
    keys = spent[:, order]
    positions = _first_of_each(keys)
    if len(positions) > BUCKETS:
        span = np.maximum(np.ptp(keys, 1), 1)[:, None]
        steps = BUCKETS ** (1 / len(keys)) // 1
        positions = _first_of_each(np.floor((keys - keys.min(1)[:, None]) / span * steps))
    return order[positions]


def _first_of_each(keys: Array) -> NDArray[np.intp]:
    """Return the first position of each different column."""
    column = np.zeros(keys.shape[1], dtype=np.int64)
    for row in keys:  # one sort of numbers a row is faster than one of columns
        values, inverse = np.unique(row, return_inverse=True)
        column = column * len(values) + inverse
    return np.unique(column, return_index=True)[1]


def find_best(
    feasible: Feasible,
    score: Scorer,
    count: int = 1,
    config: EvolutionConfig = DEFAULT_EVOLUTION,
) -> list[Candidate]:
    """Search by evolution, then refine the best of each depth and width.

    For cheap scores: it asks for some thousands, beside those of the evolution.

    Args:
        feasible: the space and its constraints.
        score: what to maximise.
        count: subnets to return.
        config: sizes, probabilities and seed of the evolution.

    Returns:
        The best of all subnets that were scored and satisfy the constraints, best first.

    Raises:
        ValueError: a score is not a finite number.
    """
    evolved = evolve(feasible, score, config)
    known = {candidate.subnet: candidate for candidate in evolved}
    for candidate in refine(feasible, score, evolved):
        known.setdefault(candidate.subnet, candidate)
    return best(known.values(), count)


def refine(feasible: Feasible, score: Scorer, starts: Sequence[Candidate] = ()) -> list[Candidate]:
    """Search each depth and width by solving linear models of the score.

    Args:
        feasible: the space and its constraints.
        score: what to maximise.
        starts: subnets with known scores; the best ones of each depth and width are where it
            begins, and some subnet that satisfies the constraints.

    Returns:
        The subnets that were scored on the way and satisfy the constraints.
    """
    found: list[Candidate] = []
    for depth, dim in product(feasible.space.depth, feasible.space.embed_dim):
        cell = [c for c in starts if (c.subnet.depth, c.subnet.embed_dim) == (depth, dim)]
        starting: list[Candidate | None] = [*best(cell, STARTS)] or [None]
        for start in starting:
            found += _refine_from(start, feasible, score, depth, dim)
    return found


def _refine_from(
    start: Candidate | None, feasible: Feasible, score: Scorer, depth: int, dim: int
) -> list[Candidate]:
    """Follow linear models from one subnet, or from any that satisfies the constraints."""
    kinds = list(product(feasible.space.num_heads, feasible.space.mlp_ratio))
    limits = [_limits(each, depth, dim, kinds) for each in feasible.constraints]
    costs, bounds = [cost for cost, _ in limits], [bound for _, bound in limits]
    found: list[Candidate] = []

    def judge(subnets: Sequence[SubnetConfig]) -> None:
        scores = score(subnets) if subnets else []
        found.extend(
            Candidate(subnet, float(value), 0)
            for subnet, value in zip(subnets, scores, strict=True)
            if feasible.contains(subnet)
        )

    def solved(gains: Array) -> list[SubnetConfig]:
        choices = solve(gains, costs, bounds, PROPOSED)
        return [_subnet(dim, choice, kinds) for choice in choices]

    if start is None:
        judge(solved(np.zeros((depth, len(kinds))))[:1])
    else:
        found.append(start)
    for _ in range(STEPS if found else 0):
        around = best(found, 1)[0]
        changed = _changes(around.subnet, kinds)
        scores = score(list(changed.values()))
        gains = np.zeros((depth, len(kinds)))
        for place, value in zip(changed, scores, strict=True):
            gains[place] = value - around.score
        judge(solved(gains))
        if best(found, 1)[0] is around:
            break
    return found


def _limits(
    constraint: Constraint, depth: int, dim: int, kinds: Sequence[Block]
) -> tuple[Array, tuple[float, float]]:
    """Return what each kind of block costs, and the range that is left for all blocks; raw."""
    cost = constraint.cost
    rest = cost.rest(dim)
    table = np.array([cost.block(dim, *kind) for kind in kinds], dtype=float)
    # Raw costs are whole numbers: half of one is more than what a conversion rounds.
    low, high = constraint.low * cost.scale - 0.5, constraint.high * cost.scale + 0.5
    return table, (low - rest, high - rest)


def _changes(subnet: SubnetConfig, kinds: Sequence[Block]) -> dict[tuple[int, int], SubnetConfig]:
    """Return the subnets that differ in one block, by its number and new kind."""
    blocks = list(zip(subnet.num_heads, subnet.mlp_ratio, strict=True))
    return {
        (i, kind): _of_blocks(subnet.embed_dim, [*blocks[:i], kinds[kind], *blocks[i + 1 :]])
        for i, kind in product(range(subnet.depth), range(len(kinds)))
        if kinds[kind] != blocks[i]
    }


def _subnet(dim: int, choice: Sequence[int], kinds: Sequence[Block]) -> SubnetConfig:
    return _of_blocks(dim, [kinds[i] for i in choice])


def _of_blocks(dim: int, blocks: Sequence[Block]) -> SubnetConfig:
    heads, ratios = zip(*blocks, strict=True)
    return SubnetConfig(len(blocks), dim, heads, ratios)
