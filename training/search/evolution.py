"""Evolutionary search over a space of subnets, and random search to compare it with.

Pure: any `SearchSpace`, any score, randomness from a seed; no network, no file, no torch. What is
scored follows from the config and the scores alone, so a search that was stopped comes to the same
end when it is given its old scores again (`journal.py`).

Source: arXiv 2107.00651, section 3.3 and appendix; microsoft/Cream@4a13c40, AutoFormer/evolution.py
(the numbers, parents from the best of all generations, no subnet scored twice, what is left of a
population filled by chance).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from autoformer_zoo.space import SearchSpace, SubnetConfig
from training.search.constraints import Feasible

Score = Callable[[Sequence[SubnetConfig]], Sequence[float]]
"""Scores a generation, higher is better: all at once, so that it can be spread over machines."""

Gene = TypeVar("Gene", int, float)

TRIES = 10  # draws for each child wanted, as upstream
EXHAUSTED = 1000  # draws in a row that were all scored before: take it that none is left


@dataclass(frozen=True, slots=True)
class EvolutionConfig:
    """Sizes and probabilities of a search; the defaults are the paper's.

    Raises:
        ValueError: a number is out of its range.
    """

    population: int = 50  # subnets scored in a generation
    generations: int = 20  # the first of which is drawn by chance
    keep: int = 10  # best subnets of all generations so far, from which children are made
    crossover: int = 25  # children of two parents in a generation
    mutation: int = 25  # children of one parent
    gene_probability: float = 0.2  # of drawing a block's heads, or its MLP ratio, anew
    size_probability: float = 0.4  # of drawing the depth, or the width, anew
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("population", "generations", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        for name in ("gene_probability", "size_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to 1")
        if min(self.crossover, self.mutation) < 0:
            raise ValueError(
                f"crossover {self.crossover}, mutation {self.mutation}; expected 0 or more"
            )
        if self.crossover + self.mutation > self.population:
            raise ValueError(
                f"crossover {self.crossover} and mutation {self.mutation} are more than the "
                f"population of {self.population}; expected their sum to be at most that"
            )

    @property
    def evaluations(self) -> int:
        """Subnets scored in the whole search, where the limits leave that many."""
        return self.population * self.generations


DEFAULT_EVOLUTION = EvolutionConfig()


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A subnet with its score, and the generation that it was made in."""

    subnet: SubnetConfig
    score: float
    generation: int


def evolve(
    feasible: Feasible, score: Score, config: EvolutionConfig = DEFAULT_EVOLUTION
) -> list[Evaluated]:
    """Search by evolution.

    Args:
        feasible: the space and its limits.
        score: what to maximise.
        config: sizes, probabilities and seed; the paper's where it is not given.

    Returns:
        All subnets that were scored, in that order. Fewer than `config.evaluations` where the
        limits leave no others.

    Raises:
        ValueError: a score is not a finite number, or there are not as many as subnets.
    """
    rng = random.Random(f"evolution/{config.seed}")
    done: list[Evaluated] = []
    seen: set[SubnetConfig] = set()
    for generation in range(config.generations):
        parents = [each.subnet for each in best(done, config.keep)]
        population = _next_population(feasible, parents, seen, config, rng)
        if not population:
            break
        done += _score(population, score, generation)
    return done


def random_search(
    feasible: Feasible, score: Score, config: EvolutionConfig = DEFAULT_EVOLUTION
) -> list[Evaluated]:
    """Score as many subnets as `evolve` does, all drawn by chance; arguments as there."""
    rng = random.Random(f"random search/{config.seed}")
    done: list[Evaluated] = []
    seen: set[SubnetConfig] = set()
    for generation in range(config.generations):
        population: list[SubnetConfig] = []
        _fill(population, feasible, seen, config.population, rng)
        if not population:
            break
        done += _score(population, score, generation)
    return done


def best(evaluated: Iterable[Evaluated], count: int) -> list[Evaluated]:
    """Return the best, highest score first; among equals, what was scored first."""
    return sorted(evaluated, key=lambda each: -each.score)[:count]


def best_so_far(evaluated: Sequence[Evaluated]) -> list[float]:
    """Return the highest score after each evaluation."""
    highest, out = -math.inf, []
    for each in evaluated:
        highest = max(highest, each.score)
        out.append(highest)
    return out


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the positions of the (cost, score) that no other one beats, cheapest first."""
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
    """Draw some genes of a subnet anew.

    A larger depth appends blocks that are drawn by chance, a smaller one cuts the last ones off.
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
    """Make a child of two subnets of the same depth: each gene from either, by chance."""
    return SubnetConfig(
        one.depth,
        rng.choice((one.embed_dim, other.embed_dim)),
        tuple(map(rng.choice, zip(one.num_heads, other.num_heads, strict=True))),
        tuple(map(rng.choice, zip(one.mlp_ratio, other.mlp_ratio, strict=True))),
    )


def _next_population(
    feasible: Feasible,
    parents: Sequence[SubnetConfig],
    seen: set[SubnetConfig],
    config: EvolutionConfig,
    rng: random.Random,
) -> list[SubnetConfig]:
    """Make subnets that were never scored: by crossover, by mutation, the rest by chance."""
    population: list[SubnetConfig] = []
    # Genes can be exchanged one by one only where there are as many: at the same depth.
    pairs = [pair for pair in combinations(parents, 2) if pair[0].depth == pair[1].depth]
    if pairs:
        _breed(
            population,
            lambda: cross(*rng.choice(pairs), rng),
            config.crossover,
            feasible,
            seen,
        )
    if parents:
        _breed(
            population,
            lambda: mutate(rng.choice(parents), feasible.space, config, rng),
            config.mutation,
            feasible,
            seen,
        )
    _fill(population, feasible, seen, config.population, rng)
    return population


def _breed(
    population: list[SubnetConfig],
    make: Callable[[], SubnetConfig],
    wanted: int,
    feasible: Feasible,
    seen: set[SubnetConfig],
) -> None:
    """Add up to `wanted` new children within the limits."""
    size = len(population) + wanted
    for _ in range(TRIES * wanted):
        if len(population) == size:
            return
        child = make()
        if child not in seen and feasible.keeps(child):
            seen.add(child)
            population.append(child)


def _fill(
    population: list[SubnetConfig],
    feasible: Feasible,
    seen: set[SubnetConfig],
    size: int,
    rng: random.Random,
) -> None:
    """Add new random subnets up to `size`, or until no new ones are, or seem to be, left."""
    missed = 0
    while len(population) < size and missed < EXHAUSTED and not feasible.is_exhausted_by(len(seen)):
        drawn = feasible.sample(rng)
        if drawn in seen:
            missed += 1
            continue
        missed = 0
        seen.add(drawn)
        population.append(drawn)


def _score(population: list[SubnetConfig], score: Score, generation: int) -> list[Evaluated]:
    scores = list(score(population))
    if len(scores) != len(population):
        raise ValueError(
            f"{len(scores)} scores for {len(population)} subnets; expected one for each"
        )
    for subnet, value in zip(population, scores, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"the score of {subnet.to_json()} is {value}; expected a number")
    return [Evaluated(s, v, generation) for s, v in zip(population, scores, strict=True)]


def _genes(
    old: Sequence[Gene],
    choices: Sequence[Gene],
    depth: int,
    config: EvolutionConfig,
    rng: random.Random,
) -> tuple[Gene, ...]:
    kept = [rng.choice(choices) if rng.random() < config.gene_probability else g for g in old]
    return tuple(kept[:depth] + [rng.choice(choices) for _ in range(depth - len(kept))])
