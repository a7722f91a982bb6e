"""Limits on costs: exact ranges, exact counts, and drawing that always ends."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoformer_zoo.network.complexity import count_macs, count_params
from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SearchSpace, SubnetConfig
from training.search import constraints as mixtures
from training.search.constraints import Cost, Feasible, Limit, every_subnet, reachable
from training.search.costs import macs_cost, params_cost

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
SUBNETS = list(every_subnet(SMALL))
PARAMS, MACS = params_cost(SMALL), macs_cost(SMALL)
# One that is no sum over heads and ratios apart, and that falls with the depth.
CROOKED = Cost("crooked", lambda dim: 7 * dim, lambda dim, h, r: int(dim * h * r) % 61 - 30, 10)


def test_every_subnet_yields_each_once() -> None:
    assert len(SUBNETS) == len(set(SUBNETS)) == SMALL.size


@pytest.mark.parametrize("name", SPACES)
def test_costs_are_the_closed_forms(name: str) -> None:
    space, rng = SPACES[name], random.Random(5)
    sizes = (space.img_size, space.patch_size, space.num_classes)
    params, macs = params_cost(space), macs_cost(space)
    for _ in range(20):
        subnet = space.sample(rng)
        assert params.of(subnet) == count_params(subnet, *sizes)
        assert macs.of(subnet) == count_macs(subnet, *sizes)


@pytest.mark.parametrize("cost", [PARAMS, MACS, CROOKED], ids=lambda cost: cost.name)
def test_reachable_range_is_that_of_all_subnets(cost: Cost) -> None:
    costs = [cost.of(subnet) for subnet in SUBNETS]
    assert reachable(SMALL, cost) == (min(costs), max(costs))


def _middle(cost: Cost, width: float) -> Limit:
    costs = sorted(cost.of(subnet) for subnet in SUBNETS)
    low = costs[int(len(costs) * (0.5 - width / 2))]
    return Limit(cost, low, costs[int(len(costs) * (0.5 + width / 2))])


@pytest.mark.parametrize(
    "limits",
    [
        (),
        (_middle(PARAMS, 0.3),),
        (_middle(PARAMS, 0.5), _middle(MACS, 0.4)),
        (_middle(CROOKED, 0.2), _middle(PARAMS, 0.4)),
        (_middle(PARAMS, 0.0),),
    ],
    ids=["none", "params", "params and macs", "crooked and params", "one value"],
)
def test_count_and_draws_are_those_of_brute_force(limits: tuple[Limit, ...]) -> None:
    within = {s for s in SUBNETS if all(limit.keeps(s) for limit in limits)}
    feasible = Feasible(SMALL, limits)
    assert feasible.count == len(within)
    drawn = {feasible._drawn_exactly(random.Random(seed)) for seed in range(40)}
    assert drawn <= within


def test_exact_draws_are_spread_as_rejection_spreads_them() -> None:
    feasible = Feasible(SMALL, (_middle(PARAMS, 0.1),))
    rng = random.Random(0)
    exact = Counter(feasible._drawn_exactly(rng) for _ in range(1000))
    drawn: Counter[SubnetConfig] = Counter()
    while drawn.total() < 1000:
        subnet = SMALL.sample(rng)
        drawn[subnet] += feasible.keeps(subnet)
    assert set(exact) == set(+drawn)
    assert max(abs(exact[s] - drawn[s]) for s in exact) < 90


def test_draws_within_the_narrowest_limits_of_a_real_space() -> None:
    space = SPACES["small"]
    params, macs = params_cost(space), macs_cost(space)
    rare = SubnetConfig.uniform(13, 384, 5, 3.0)
    limits = [Limit(params, params.of(rare), params.of(rare) + 50_000), Limit(macs, 0, 1e12)]
    assert Feasible(space, limits).sample(random.Random(1)).embed_dim in space.embed_dim
    only = Feasible(space, [Limit(params, *reachable(space, params)[1:] * 2)])
    assert only.sample(random.Random(0)) == space.largest
    assert only.count == 1


def test_limits_out_of_reach_end_with_the_range() -> None:
    low, high = reachable(SMALL, PARAMS)
    with pytest.raises(ValueError, match=rf"params from 1 to 9; it reaches {low:,} to {high:,}$"):
        Feasible(SMALL, [Limit(PARAMS, 1, 9)])
    with pytest.raises(ValueError, match=r"no subnet of the space has params from .* on; it reac"):
        Feasible(SMALL, [Limit(PARAMS, high + 1)])


def test_limits_in_a_gap_or_in_conflict_end_with_what_can_be_reached() -> None:
    least, most = reachable(SMALL, PARAMS)
    with pytest.raises(ValueError, match=r"it lies in a gap of params .* to .*; widen it"):
        Feasible(SMALL, [Limit(PARAMS, least + 1, least + 2)])
    few_macs = Limit(MACS, 0, reachable(SMALL, MACS)[0])
    text = rf"within the other limits: macs .*, params {least:,} to {least:,}$"
    with pytest.raises(ValueError, match=text):
        Feasible(SMALL, [few_macs, Limit(PARAMS, most - 10)])


def _latency(space: SearchSpace, seed: int) -> Cost:
    """Make up a latency in ns: sums that hardly ever meet."""
    rng = random.Random(seed)
    kinds = product(space.embed_dim, space.num_heads, space.mlp_ratio)
    blocks = {kind: rng.randrange(1, 10**6) for kind in kinds}
    rests = {dim: rng.randrange(10**6) for dim in space.embed_dim}
    return Cost("latency_ms", rests.__getitem__, lambda *kind: blocks[kind], 10**6)


@st.composite
def _spaces(draw: st.DrawFn) -> SearchSpace:
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


@settings(max_examples=60, deadline=None)
@given(_spaces(), st.integers(0, 99), st.data())
def test_limits_on_sums_that_hardly_meet_are_those_of_brute_force(
    space: SearchSpace, seed: int, data: st.DataObject
) -> None:
    costs = data.draw(st.permutations([_latency(space, seed), params_cost(space), CROOKED]))
    subnets = list(every_subnet(space))
    limits = []
    for cost in costs[: data.draw(st.integers(1, 3))]:
        reached = sorted({cost.of(subnet) for subnet in subnets})
        ends = data.draw(st.tuples(st.sampled_from(reached), st.sampled_from(reached)))
        gap = data.draw(st.sampled_from([0, 0, 5e-7]))  # between ns, where nothing is
        limits.append(Limit(cost, min(ends) + gap, max(ends) + gap))
    within = {s for s in subnets if all(limit.keeps(s) for limit in limits)}

    if not within:
        with pytest.raises(ValueError, match="no subnet of the space has"):
            Feasible(space, limits)
        return
    feasible, rng = Feasible(space, limits), random.Random(seed)
    assert feasible.count == len(within)
    assert {feasible.sample(rng) for _ in range(5)} <= within
    assert {feasible._drawn_exactly(rng) for _ in range(20)} <= within
    if len(within) <= 3 and len(space.depth) == 1:
        assert {feasible._drawn_exactly(rng) for _ in range(99)} == within


def test_what_is_told_to_be_within_reach_is() -> None:
    latency = _latency(SMALL, 1)
    costs = sorted(latency.of(subnet) for subnet in SUBNETS)
    with pytest.raises(ValueError, match=rf"it reaches {costs[0]} to {costs[-1]}$"):
        Feasible(SMALL, [Limit(latency, 0, 1e-6)])
    for end in (costs[0], costs[-1]):
        assert Feasible(SMALL, [Limit(latency, end, end)]).count

    fewest = Limit(PARAMS, 0, reachable(SMALL, PARAMS)[0])
    beside = [latency.of(subnet) for subnet in SUBNETS if fewest.keeps(subnet)]
    text = rf"within the other limits: .*, latency_ms {min(beside)} to {max(beside)}$"
    with pytest.raises(ValueError, match=text):
        Feasible(SMALL, [fewest, Limit(latency, costs[-1])])


@pytest.mark.parametrize("name", ["small", "base"])
def test_latencies_of_a_real_space_are_counted_and_drawn_from(name: str) -> None:
    space = SPACES[name]
    latency, params = _latency(space, 2), params_cost(space)
    some = space.sample(random.Random(3))
    only = latency.of(some)
    feasible = Feasible(space, [Limit(latency, only, only), Limit(params, 0, params.of(some))])
    orders = Counter(zip(some.num_heads, some.mlp_ratio, strict=True))
    drawn = feasible.sample(random.Random(0))
    assert feasible.keeps(drawn)
    assert feasible.count >= 1000
    assert Counter(zip(drawn.num_heads, drawn.mlp_ratio, strict=True)) == orders
    with pytest.raises(ValueError, match="it lies in a gap of latency_ms"):
        Feasible(space, [Limit(latency, only + 2e-7, only + 8e-7)])


def test_too_many_sums_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixtures, "MOST_SUMS", 5)
    assert Feasible(SMALL, [Limit(PARAMS, 0, 1e9)]).sample(random.Random(0)) in SUBNETS
    with pytest.raises(ValueError, match=r"has more than 5: widen the limits, or give the space"):
        Feasible(SMALL, [_middle(PARAMS, 0.0)])


def test_empty_range_is_refused() -> None:
    with pytest.raises(ValueError, match="params from 5 to 4 is empty; expected the lower end fi"):
        Limit(PARAMS, 5, 4)
