"""Evolutionary search over a space of subnets, and random search to compare it with.

Pure: any `SearchSpace`, any scorer, randomness from a seed; no network, no file, no torch. Which
subnets are scored depends on the config and the scores alone, so a search that was stopped ends
with the same result when it gets its old scores back.

Source: arXiv 2107.00651, section 3.3 and appendix; microsoft/Cream@4a13c40, AutoFormer/evolution.py
(the numbers, parents from the best of all generations, no subnet scored twice, the rest of a
population drawn at random).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from typing import TypeVar

from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.specialization.constraints import Feasible

Scorer = Callable[[Sequence[SubnetConfig]], Sequence[float]]
"""Scores a generation, higher is better: all at once, so that processes can share it."""

Gene = TypeVar("Gene", int, float)

TRIES = 10  # attempts for each child, as upstream
EXHAUSTED = 100  # draws in a row that were all scored before: assume that no others exist


@dataclass(frozen=True, slots=True)
class EvolutionConfig:
    """Sizes and probabilities of a search; the defaults are the paper's.

    Raises:
        ValueError: a number is out of its range.
    """

    population: int = 50  # subnets scored in each generation
    generations: int = 20  # number of generations; the first one is random
    keep: int = 10  # number of parents: the best subnets of all generations so far
    crossover: int = 25  # children of two parents in each generation
    mutation: int = 25  # children of one parent in each generation
    gene_probability: float = 0.2  # probability that a block's heads, or its MLP ratio, mutate
    size_probability: float = 0.4  # probability that the depth, or the width, mutates
    seed: int = 0  # seed of the search

    def __post_init__(self) -> None:
        for name in ("population", "generations", "keep"):
            self._require(name, "expected 1 or more", lambda value: value >= 1)
        for name in ("crossover", "mutation"):
            self._require(name, "expected 0 or more", lambda value: value >= 0)
        for name in ("gene_probability", "size_probability"):
            self._require(name, "expected a share from 0 to 1", lambda value: 0 <= value <= 1)
        if self.crossover + self.mutation > self.population:
            raise ValueError(
                f"crossover {self.crossover} and mutation {self.mutation} are more than the "
                f"population of {self.population}; expected their sum to be at most that"
            )

    def _require(self, name: str, expected: str, is_right: Callable[[float], bool]) -> None:
        if not is_right(getattr(self, name)):
            raise ValueError(f"{name} is {getattr(self, name)}; {expected}")

    @property
    def evaluations(self) -> int:
        """Subnets scored in the whole search, if the constraints leave that many."""
        return self.population * self.generations


DEFAULT_EVOLUTION = EvolutionConfig()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A subnet with its score, and the generation that it belongs to."""

    subnet: SubnetConfig
    score: float
    generation: int


def evolve(
    feasible: Feasible, score: Scorer, config: EvolutionConfig = DEFAULT_EVOLUTION
) -> list[Candidate]:
    """Search by evolution.

    Args:
        feasible: the space and its constraints.
        score: what to maximise.
        config: sizes, probabilities and seed.

    Returns:
        All subnets that were scored, in that order. Fewer than `config.evaluations` if the
        constraints leave no others.

    Raises:
        ValueError: a score is not a finite number, or the number of scores is wrong.
    """
    return _search(f"evolution/{config.seed}", feasible, score, config, config.keep)


def random_search(
    feasible: Feasible, score: Scorer, config: EvolutionConfig = DEFAULT_EVOLUTION
) -> list[Candidate]:
    """Score as many subnets as `evolve` does, all random; arguments as there."""
    return _search(f"random search/{config.seed}", feasible, score, config, num_parents=0)


def _search(
    seed: str, feasible: Feasible, score: Scorer, config: EvolutionConfig, num_parents: int
) -> list[Candidate]:
    rng = random.Random(seed)
    done: list[Candidate] = []
    seen: set[SubnetConfig] = set()
    for generation in range(config.generations):
        parents = [candidate.subnet for candidate in best(done, num_parents)]
        population = _breed(parents, feasible, seen, config, rng)
        population += _draw_new(config.population - len(population), feasible, seen, rng)
        if not population:
            break
        done += _score(population, score, generation)
    return done


def best(candidates: Iterable[Candidate], count: int) -> list[Candidate]:
    """Return the best, highest score first; among equals, the one that was scored first."""
    return sorted(candidates, key=lambda candidate: -candidate.score)[:count]


def best_so_far(candidates: Sequence[Candidate]) -> list[float]:
    """Return the highest score after each evaluation."""
    return list(accumulate((candidate.score for candidate in candidates), max))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the positions of the (cost, score) pairs that no other pair beats, cheapest first."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front, highest = [], -math.inf
    for i in order:
        if points[i][1] > highest:
            highest = points[i][1]
            front.append(i)
    return front


def mutate(
    parent: SubnetConfig, space: SearchSpace, config: EvolutionConfig, rng: random.Random
) -> SubnetConfig:
    """Draw some genes of a subnet again.

    A larger depth appends random blocks, a smaller one cuts the last ones off.
    """
    depth, dim = parent.depth, parent.embed_dim
    if rng.random() < config.size_probability:
        depth = rng.choice(space.depth)
    if rng.random() < config.size_probability:
        dim = rng.choice(space.embed_dim)
    heads = _genes(parent.num_heads, space.num_heads, depth, config, rng)
    return SubnetConfig(
        depth, dim, heads, _genes(parent.mlp_ratio, space.mlp_ratio, depth, config, rng)
    )


def cross(one: SubnetConfig, other: SubnetConfig, rng: random.Random) -> SubnetConfig:
    """Make a child of two subnets of the same depth: each gene from a random parent."""
    return SubnetConfig(
        one.depth,
        rng.choice((one.embed_dim, other.embed_dim)),
        tuple(map(rng.choice, zip(one.num_heads, other.num_heads, strict=True))),
        tuple(map(rng.choice, zip(one.mlp_ratio, other.mlp_ratio, strict=True))),
    )


def _breed(
    parents: Sequence[SubnetConfig],
    feasible: Feasible,
    seen: set[SubnetConfig],
    config: EvolutionConfig,
    rng: random.Random,
) -> list[SubnetConfig]:
    """Make subnets that were never scored, by crossover and by mutation."""
    children: list[SubnetConfig] = []

    def add(make: Callable[[], SubnetConfig], wanted: int) -> None:
        size = len(children) + wanted
        for _ in range(TRIES * wanted):
            if len(children) == size:
                return
            child = make()
            if child not in seen and feasible.contains(child):
                seen.add(child)
                children.append(child)

    # Genes can be exchanged one by one only between parents of the same depth.
    pairs = [pair for pair in combinations(parents, 2) if pair[0].depth == pair[1].depth]
    if pairs:
        add(lambda: cross(*rng.choice(pairs), rng), config.crossover)
    if parents:
        add(lambda: mutate(rng.choice(parents), feasible.space, config, rng), config.mutation)
    return children


def _draw_new(
    count: int, feasible: Feasible, seen: set[SubnetConfig], rng: random.Random
) -> list[SubnetConfig]:
    """Draw random subnets that were never scored; fewer if no others seem to exist."""
    drawn: list[SubnetConfig] = []
    misses = 0
    while len(drawn) < count and misses < EXHAUSTED:
        subnet = feasible.sample(rng)
        misses = misses + 1 if subnet in seen else 0
        if not misses:
            seen.add(subnet)
            drawn.append(subnet)
    return drawn


def _score(population: list[SubnetConfig], score: Scorer, generation: int) -> list[Candidate]:
    scores = list(score(population))
    if len(scores) != len(population):
        raise ValueError(
            f"{len(scores)} scores for {len(population)} subnets; expected one for each"
        )
    for subnet, value in zip(population, scores, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"the score of {subnet.to_json()} is {value}; expected a number")
    return [Candidate(s, v, generation) for s, v in zip(population, scores, strict=True)]


def _genes(
    old: Sequence[Gene],
    choices: Sequence[Gene],
    depth: int,
    config: EvolutionConfig,
    rng: random.Random,
) -> tuple[Gene, ...]:
    kept = [rng.choice(choices) if rng.random() < config.gene_probability else g for g in old]
    return tuple(kept[:depth] + [rng.choice(choices) for _ in range(depth - len(kept))])
