"""Evolution: determinism, children that are legal and new, endings, and that it finds something."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.specialization.constraints import Constraint, Feasible, params_cost
from autoformer_zoo.specialization.evolution import (
    Candidate,
    EvolutionConfig,
    best,
    best_so_far,
    cross,
    evolve,
    mutate,
    pareto_front,
    random_search,
)

Search = Callable[..., list[Candidate]]
NANO = SPACES["nano"]
FEW = EvolutionConfig(population=10, generations=6, keep=4, crossover=4, mutation=4)


def rugged(subnets: Sequence[SubnetConfig]) -> list[float]:
    """Score with a reward for each gene that is its own place's best: many genes have to agree."""

    def one(subnet: SubnetConfig) -> float:
        hits = sum(h == 2 + i % 2 for i, h in enumerate(subnet.num_heads))
        hits += sum(r == (3.0, 4.0, 3.5)[i % 3] for i, r in enumerate(subnet.mlp_ratio))
        return hits - 0.1 * (subnet.embed_dim != 160)

    return [one(subnet) for subnet in subnets]


def test_same_seed_gives_the_same_search() -> None:
    feasible = Feasible(NANO)
    assert evolve(feasible, rugged, FEW) == evolve(feasible, rugged, FEW)
    assert evolve(feasible, rugged, FEW) != evolve(feasible, rugged, replace(FEW, seed=1))


@pytest.mark.parametrize("method", [evolve, random_search])
def test_nothing_is_scored_twice_or_outside_the_constraints(method: Search) -> None:
    feasible = Feasible(NANO, [Constraint(params_cost(NANO), 1.8e6, 2.2e6)])
    done = method(feasible, rugged, FEW)
    assert len(done) == len({candidate.subnet for candidate in done}) == FEW.evaluations
    assert all(NANO.contains(c.subnet) and feasible.contains(c.subnet) for c in done)
    assert [candidate.generation for candidate in done] == [i // 10 for i in range(60)]


def test_generations_after_the_first_follow_the_best() -> None:
    done = evolve(Feasible(NANO), rugged, replace(FEW, generations=12))
    mean = [statistics.mean(e.score for e in done if e.generation == n) for n in (0, 11)]
    assert mean[1] > mean[0] + 2


def test_evolution_beats_random_search_at_equal_evaluations() -> None:
    config = EvolutionConfig(population=20, generations=10, keep=5, crossover=10, mutation=10)
    pairs = []
    for seed in range(5):
        seeded = replace(config, seed=seed)
        found = [m(Feasible(NANO), rugged, seeded) for m in (evolve, random_search)]
        assert len(found[0]) == len(found[1])
        pairs.append([best(each, 1)[0].score for each in found])
    assert all(evolved > drawn for evolved, drawn in pairs)


def test_small_space_is_searched_to_its_end() -> None:
    space = SearchSpace((64,), (1, 2), (1.0,), (1, 2), SubnetConfig.uniform(2, 64, 2, 1.0))
    done = evolve(Feasible(space), lambda subnets: [float(s.depth) for s in subnets], FEW)
    assert len(done) == space.size == 6


@pytest.mark.parametrize("method", [evolve, random_search])
def test_search_ends_when_few_subnets_comply(method: Search) -> None:
    params = params_cost(NANO)
    feasible = Feasible(NANO, [Constraint(params, params.value(NANO.largest) - 60_000)])
    done = method(feasible, rugged, replace(FEW, generations=99))
    assert len(done) == 15  # the largest subnet, and those with one smaller block


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_mutation_changes_what_its_probabilities_say(probability: float) -> None:
    config = EvolutionConfig(gene_probability=probability, size_probability=probability)
    rng, parent = random.Random(0), NANO.smallest
    children = {mutate(parent, NANO, config, rng) for _ in range(50)}
    assert all(NANO.contains(child) for child in children)
    assert (children == {parent}) == (probability == 0)


def test_mutation_of_depth_appends_drawn_blocks_and_cuts_last_ones() -> None:
    config = EvolutionConfig(gene_probability=0.0, size_probability=1.0)
    rng = random.Random(0)
    parent = SubnetConfig(6, 160, (2, 3, 2, 3, 2, 3), (3.0, 3.5, 4.0, 3.0, 3.5, 4.0))
    children = [mutate(parent, NANO, config, rng) for _ in range(60)]
    assert {child.depth for child in children} == {5, 6, 7}
    for child in children:
        kept = min(child.depth, 6)
        assert child.num_heads[:kept] == parent.num_heads[:kept]
        assert child.mlp_ratio[:kept] == parent.mlp_ratio[:kept]
    appended = {(c.num_heads[6], c.mlp_ratio[6]) for c in children if c.depth == 7}
    assert len(appended) > 3


def test_crossover_takes_each_gene_from_either_parent() -> None:
    one, other = NANO.smallest, replace(NANO.smallest, embed_dim=192, num_heads=(3,) * 5)
    rng = random.Random(0)
    children = {cross(one, other, rng) for _ in range(40)}
    assert {child.embed_dim for child in children} == {128, 192}
    assert {child.mlp_ratio for child in children} == {one.mlp_ratio}
    assert len({child.num_heads for child in children}) > 10


def test_best_and_best_so_far_prefer_what_came_first() -> None:
    subnets = [NANO.smallest, NANO.largest, SubnetConfig.uniform(5, 128, 2, 4.0)]
    done = [Candidate(s, v, 0) for s, v in zip(subnets, (1.0, 3.0, 3.0), strict=True)]
    assert [each.subnet for each in best(done, 2)] == subnets[1:]
    assert best_so_far(done) == [1.0, 3.0, 3.0]


def test_pareto_front_leaves_out_what_is_beaten() -> None:
    points = [(3.0, 5.0), (1.0, 2.0), (2.0, 2.0), (2.5, 4.0), (4.0, 4.5), (1.0, 1.0)]
    assert pareto_front(points) == [1, 3, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_score_that_is_not_a_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"the score of \{.*\} is (nan|inf); expected a number"):
        evolve(Feasible(NANO), lambda subnets: [value] * len(subnets), FEW)


def test_missing_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="3 scores for 10 subnets; expected one for each"):
        evolve(Feasible(NANO), lambda subnets: [1.0] * 3, FEW)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"population": 0}, "population is 0; expected"),
        ({"gene_probability": 1.5}, "gene_probability is 1.5; expected"),
        ({"mutation": -1}, "mutation is -1; expected"),
        ({"crossover": 9}, "crossover 9 and mutation 4 are more than the population of 10"),
    ],
    ids=["population", "probability", "negative", "sum"],
)
def test_meaningless_configs_are_refused(values: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(FEW, **values)
