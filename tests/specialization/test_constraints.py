"""Constraints on costs: exact ranges, draws that comply, windows that few subnets are in."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoformer_zoo.network.complexity import count_macs, count_params
from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.specialization.constraints import (
    Constraint,
    Cost,
    Feasible,
    macs_cost,
    params_cost,
    reachable,
)

SMALL = SearchSpace(
    embed_dim=(64, 100),
    num_heads=(1, 2),
    mlp_ratio=(1.0, 2.5),
    depth=(1, 2, 3),
    supernet=SubnetConfig.uniform(3, 100, 2, 2.5),
    img_size=16,
    patch_size=4,
    num_classes=10,
)


def every_subnet(space: SearchSpace) -> Iterator[SubnetConfig]:
    for dim, depth in product(space.embed_dim, space.depth):
        for blocks in product(product(space.num_heads, space.mlp_ratio), repeat=depth):
            heads, ratios = zip(*blocks, strict=True)
            yield SubnetConfig(depth, dim, heads, ratios)


def made_latency(space: SearchSpace, seed: int = 1) -> Cost:
    """Make up a latency in ns that hardly any two subnets share."""
    rng = random.Random(seed)
    kinds = product(space.embed_dim, space.num_heads, space.mlp_ratio)
    blocks = {kind: rng.randrange(1, 10**6) for kind in kinds}
    rests = {dim: rng.randrange(10**6) for dim in space.embed_dim}
    return Cost("latency_ms", rests.__getitem__, lambda *kind: blocks[kind], 10**6)


SUBNETS = list(every_subnet(SMALL))
PARAMS, MACS = params_cost(SMALL), macs_cost(SMALL)
# Neither a product of heads and ratio, nor rising with the depth.
CROOKED = Cost("crooked", lambda dim: 7 * dim, lambda dim, h, r: int(dim * h * r) % 61 - 30, 10)


@pytest.mark.parametrize("name", SPACES)
def test_costs_are_the_closed_forms(name: str) -> None:
    space, rng = SPACES[name], random.Random(5)
    sizes = (space.img_size, space.patch_size, space.num_classes)
    params, macs = params_cost(space), macs_cost(space)
    for _ in range(20):
        subnet = space.sample(rng)
        assert params.value(subnet) == count_params(subnet, *sizes)
        assert macs.value(subnet) == count_macs(subnet, *sizes)


@pytest.mark.parametrize(
    "cost", [PARAMS, MACS, CROOKED, made_latency(SMALL)], ids=lambda cost: cost.name
)
def test_reachable_range_is_exact_and_can_be_asked_for(cost: Cost) -> None:
    values = [cost.value(subnet) for subnet in SUBNETS]
    assert reachable(SMALL, cost) == (min(values), max(values))
    for end in reachable(SMALL, cost):
        assert (
            cost.value(Feasible(SMALL, [Constraint(cost, end, end)]).sample(random.Random(0)))
            == end
        )


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    def choices(values: Sequence[float]) -> tuple[Any, ...]:
        return tuple(draw(st.sets(st.sampled_from(values), min_size=1, max_size=2)))

    return SearchSpace(
        embed_dim=choices((64, 80)),
        num_heads=choices((1, 2, 3)),
        mlp_ratio=choices((1.0, 1.5, 2.0)),
        depth=choices((1, 2, 3, 4)),
        supernet=SubnetConfig.uniform(4, 80, 3, 2.0),
        img_size=16,
        patch_size=4,
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(spaces(), st.integers(0, 99), st.data())
def test_draws_comply_and_only_impossible_constraints_are_refused(
    space: SearchSpace, seed: int, data: st.DataObject
) -> None:
    costs = data.draw(st.permutations([made_latency(space, seed), params_cost(space), CROOKED]))
    subnets = list(every_subnet(space))
    constraints = []
    for cost in costs[: data.draw(st.integers(1, 3))]:
        reached = sorted({cost.value(subnet) for subnet in subnets})
        ends = data.draw(st.tuples(st.sampled_from(reached), st.sampled_from(reached)))
        gap = data.draw(st.sampled_from([0, 0, 5e-7]))  # between ns, where no subnet is
        constraints.append(Constraint(cost, min(ends) + gap, max(ends) + gap))
    within = {s for s in subnets if not any(c.violation(c.cost.value(s)) for c in constraints)}

    if not within:
        with pytest.raises(ValueError, match="no subnet "):
            Feasible(space, constraints)
        return
    feasible, rng = Feasible(space, constraints), random.Random(seed)
    assert {feasible.sample(rng) for _ in range(5)} <= within


def test_draws_from_wide_ranges_are_those_of_the_space() -> None:
    costs = sorted(PARAMS.value(subnet) for subnet in SUBNETS)
    feasible = Feasible(SMALL, [Constraint(PARAMS, costs[40], costs[100])])
    for seed in range(20):
        rng = random.Random(seed)
        expected = SMALL.sample(rng)
        while not feasible.contains(expected):
            expected = SMALL.sample(rng)
        assert feasible.sample(random.Random(seed)) == expected


def one_percent(space: SearchSpace) -> list[Constraint]:
    params = params_cost(space)
    low, high = reachable(space, params)
    return [Constraint(params, low + 0.1 * (high - low), low + 0.11 * (high - low))]


def latency_band(space: SearchSpace) -> list[Constraint]:
    latency, params = made_latency(space), params_cost(space)
    subnet = space.sample(random.Random(3))
    ms = latency.value(subnet)
    return [
        Constraint(latency, ms - 0.001, ms + 0.001),
        Constraint(params, 0, params.value(subnet)),
    ]


def only_one(space: SearchSpace) -> list[Constraint]:
    return [Constraint(params_cost(space), params_cost(space).value(space.largest))]


@pytest.mark.parametrize("name", ["nano", "small"])
@pytest.mark.parametrize(
    ("narrow", "different"), [(one_percent, 20), (latency_band, 5), (only_one, 1)]
)
def test_narrow_windows_of_real_spaces_are_drawn_from(
    name: str, narrow: Callable[[SearchSpace], list[Constraint]], different: int
) -> None:
    space, rng = SPACES[name], random.Random(0)
    feasible = Feasible(space, narrow(space))
    drawn: set[SubnetConfig] = set()
    end = time.monotonic() + 60  # a draw takes some 20 ms
    while len(drawn) < different and time.monotonic() < end:
        drawn.add(feasible.sample(rng))
        assert all(space.contains(subnet) and feasible.contains(subnet) for subnet in drawn)
    assert len(drawn) == different


LOWEST, HIGHEST = reachable(SMALL, PARAMS)


@pytest.mark.parametrize(
    ("constraints", "text"),
    [
        ([(PARAMS, 1, 9)], f"params from 1 to 9; the space reaches {LOWEST:,} to {HIGHEST:,}$"),
        ([(PARAMS, HIGHEST + 1)], r"no subnet of the space has params from .* on; the space rea"),
        ([(PARAMS, LOWEST + 1, LOWEST + 2)], f"the nearest has params {LOWEST:,}: widen a range"),
        (
            [(MACS, 0, reachable(SMALL, MACS)[0]), (PARAMS, HIGHEST - 10)],
            r"no subnet found that has macs from 0 to .* and params from .* on; the nearest has m",
        ),
    ],
    ids=["below", "above", "gap", "conflict"],
)
def test_impossible_constraints_are_refused_with_what_is_possible(
    constraints: list[tuple[Any, ...]], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        Feasible(SMALL, [Constraint(*each) for each in constraints])


def test_empty_range_is_refused() -> None:
    with pytest.raises(ValueError, match="params from 5 to 4 is empty; expected the lower end fi"):
        Constraint(PARAMS, 5, 4)
