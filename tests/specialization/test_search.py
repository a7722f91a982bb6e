"""The exact optimum of additive models, and the search that follows linear models."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.specialization.constraints import Constraint, Feasible, params_cost, reachable
from autoformer_zoo.specialization.evolution import EvolutionConfig, best, evolve
from autoformer_zoo.specialization.predictor import load_predictor
from autoformer_zoo.specialization.search import find_best, refine, solve
from tests.helpers.made_training import MINI
from tests.specialization.test_constraints import every_subnet, made_latency

NANO = SPACES["nano"]


@pytest.mark.parametrize("seed", range(4))
def test_solved_choices_are_the_best_of_all_within_the_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gains, costs = rng.normal(size=(5, 3)), [rng.integers(0, 9, 3), rng.integers(0, 99, 3)]
    some = rng.integers(0, 3, 5)  # this choice is within the bounds
    near = [float(cost[some].sum()) for cost in costs]
    bounds = [(near[0] - 5, near[0] + 5), (0.0, near[1] + 20)]

    def total(choice: Sequence[int]) -> float:
        return float(sum(gains[i, kind] for i, kind in enumerate(choice)))

    within = [
        choice
        for choice in product(range(3), repeat=5)
        if all(
            low <= sum(cost[kind] for kind in choice) <= high
            for cost, (low, high) in zip(costs, bounds, strict=True)
        )
    ]
    assert total(solve(gains, costs, bounds)[0]) == pytest.approx(max(map(total, within)))
    assert solve(gains, costs, [(1e6, 2e6), bounds[1]]) == []


def made_score(space: SearchSpace, seed: int, pairs: float = 0.0) -> Callable[..., list[float]]:
    """Make up a score: a sum over blocks, and `pairs` of products of neighbours."""
    rng = np.random.default_rng(seed)
    shape = (space.depth[-1], 10, 10)
    effects, neighbours = rng.normal(size=shape), rng.normal(size=(*shape, 10))
    width = dict(zip(space.embed_dim, rng.normal(size=len(space.embed_dim)), strict=True))

    def one(subnet: SubnetConfig) -> float:
        blocks = list(zip(subnet.num_heads, (int(2 * r) for r in subnet.mlp_ratio), strict=True))
        total = width[subnet.embed_dim] + sum(effects[i, h, r] for i, (h, r) in enumerate(blocks))
        for i in range(len(blocks) - 1):
            total += pairs * neighbours[i, blocks[i][0], blocks[i][1], blocks[i + 1][0]]
        return float(total)

    return lambda subnets: [one(subnet) for subnet in subnets]


@pytest.mark.parametrize("seed", range(5))
def test_additive_scores_are_refined_to_the_optimum(seed: int) -> None:
    score = made_score(MINI, seed)
    subnets = list(every_subnet(MINI))
    costs = [params_cost(MINI), made_latency(MINI)]
    middle = random.Random(seed).choice(subnets)
    constraints = [Constraint(cost, 0, cost.value(middle)) for cost in costs]
    feasible = Feasible(MINI, constraints)
    found = refine(feasible, score)
    assert all(feasible.contains(each.subnet) for each in found)
    best = max(score(list(filter(feasible.contains, subnets))))
    assert max(each.score for each in found) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(3))
def test_search_finds_the_best_of_a_score_with_interactions(seed: int) -> None:
    score = made_score(MINI, seed, pairs=0.5)
    feasible = Feasible(MINI, [Constraint(params_cost(MINI), 0, 6e4)])
    few = EvolutionConfig(population=10, generations=4, keep=4, crossover=4, mutation=4)
    found = find_best(feasible, score, 3, few)
    assert found == find_best(feasible, score, 3, few)
    assert all(feasible.contains(each.subnet) for each in found)
    scores = sorted(score(list(filter(feasible.contains, every_subnet(MINI)))), reverse=True)
    assert found[0].score == pytest.approx(scores[0])


@pytest.mark.slow  # a minute of evolution
@pytest.mark.parametrize("space", ["tiny", "small", "base"])
def test_search_is_as_good_as_evolution_with_a_hundred_times_the_evaluations(space: str) -> None:
    predict = load_predictor(space).predict
    count = [0]

    def score(subnets: Sequence[SubnetConfig]) -> list[float]:
        count[0] += len(subnets)
        return predict(subnets).tolist()

    for share in (0.2, 0.5):
        params = params_cost(SPACES[space])
        low, high = reachable(SPACES[space], params)
        feasible = Feasible(SPACES[space], [Constraint(params, 0, low + share * (high - low))])
        count[0] = 0
        found = find_best(feasible, score)[0].score
        large = EvolutionConfig(population=500, keep=50, crossover=250, mutation=250)
        large = replace(large, generations=100 * count[0] // large.population)
        assert found > best(evolve(feasible, score, large), 1)[0].score - 0.02
