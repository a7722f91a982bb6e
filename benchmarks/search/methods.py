"""Methods of search; each asks a `Run` for accuracies until the run is at its end."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.specialization.evolution import EvolutionConfig, evolve, mutate
from autoformer_zoo.specialization.search import refine
from benchmarks.search.landscapes import Array, EnoughError, Landscape, choices_of

START, BATCH = 50, 50  # random subnets before a model is fitted, evaluations between fits
RIDGE = 1.0
LOCAL_MISSES = 40  # changes in a row that do not help before a local search starts again


class Run:
    """One search with one method: asks, and remembers.

    Args:
        landscape: what is searched.
        seed: of the method and of the noise.
        evaluations: how many it may ask for.
    """

    def __init__(self, landscape: Landscape, seed: int, evaluations: int) -> None:
        self.landscape, self.seed, self.evaluations = landscape, seed, evaluations
        self.rng = random.Random(seed)
        self.scores: dict[SubnetConfig, float] = {}
        self.regrets: list[float] = []  # of the best so far, after each evaluation
        self._seen: set[int] = set()
        self._highest = -np.inf

    def ask(self, subnets: Sequence[SubnetConfig]) -> list[float]:
        """Return scores of subnets.

        Raises:
            EnoughError: the evaluations are used up.
        """
        return [self._ask(subnet) for subnet in subnets]

    def _ask(self, subnet: SubnetConfig) -> float:
        if subnet in self.scores:
            return self.scores[subnet]
        if len(self.regrets) == self.evaluations:
            raise EnoughError
        score, true = self.landscape.evaluate(subnet, self._seen, self.seed)
        self.scores[subnet] = score
        regret = self.landscape.best - true
        self.regrets.append(regret if score > self._highest else self.regrets[-1])
        self._highest = max(score, self._highest)
        return score

    def best(self, count: int) -> list[SubnetConfig]:
        """Return the subnets with the highest scores."""
        return sorted(self.scores, key=lambda subnet: -self.scores[subnet])[:count]

    def ask_random(self, count: int) -> None:
        """Ask for random subnets."""
        self.ask(self.rng.sample(self.landscape.pool, min(count, len(self.landscape.pool))))


def random_search(run: Run) -> None:
    """Ask for random subnets."""
    run.ask_random(run.evaluations)


def evolution(run: Run) -> None:
    """Search as the paper does: 20 generations of 50."""
    evolve(run.landscape.feasible, run.ask, EvolutionConfig(seed=run.seed))


def local_search(run: Run) -> None:
    """Change one choice at a time and keep what is better; start anew when nothing helps."""
    space, feasible = run.landscape.space, run.landscape.feasible
    while True:
        current = run.rng.choice(run.landscape.pool)
        (score,) = run.ask([current])
        misses = 0
        while misses < LOCAL_MISSES:
            changed = change_one(current, space, run.rng)
            if changed in run.scores or not feasible.contains(changed):
                misses += 1
                continue
            (found,) = run.ask([changed])
            misses = 0 if found > score else misses + 1
            if found > score:
                current, score = changed, found


def guided_search(run: Run) -> None:
    """Fit an additive model, ask for what it says is best of random and mutated subnets; repeat."""
    space, feasible = run.landscape.space, run.landscape.feasible
    config = EvolutionConfig()
    run.ask_random(START)
    while True:
        model = AdditiveModel(space, run.scores)
        parents = run.best(10)
        mutants = [mutate(run.rng.choice(parents), space, config, run.rng) for _ in range(300)]
        some = run.rng.sample(run.landscape.pool, min(700, len(run.landscape.pool)))
        fresh = [s for s in dict.fromkeys(mutants + some) if s not in run.scores]
        fresh = [subnet for subnet in fresh if feasible.contains(subnet)]
        order = np.argsort(-np.array(model.predict(fresh)), kind="stable")
        run.ask([fresh[i] for i in order[:BATCH]])


def additive_optimum(run: Run) -> None:
    """Fit an additive model to random subnets and ask for its exact optimum; with ever more."""
    while True:
        run.ask_random(START if not run.scores else len(run.scores))
        model = AdditiveModel(run.landscape.space, run.scores)
        found = refine(run.landscape.feasible, model.predict)
        ranked = sorted(found, key=lambda candidate: -candidate.score)
        run.ask([candidate.subnet for candidate in ranked[:BATCH]])


class AdditiveModel:
    """A ridge regression: a constant for each depth and width, and a sum over blocks.

    Args:
        space: whose choices.
        scores: of subnets.
    """

    def __init__(self, space: SearchSpace, scores: dict[SubnetConfig, float]) -> None:
        self.space = space
        x, y = self._terms(list(scores)), np.array(list(scores.values()))
        self.mean = y.mean()
        gram = x.T @ x + RIDGE * np.eye(x.shape[1])
        self.weights = np.linalg.solve(gram, x.T @ (y - self.mean))

    def predict(self, subnets: Sequence[SubnetConfig]) -> list[float]:
        """Return predicted accuracies."""
        return (self.mean + self._terms(subnets) @ self.weights).tolist() if subnets else []

    def _terms(self, subnets: Sequence[SubnetConfig]) -> Array:
        z = choices_of(self.space, subnets)
        depth = np.array([[s.depth == depth for depth in self.space.depth] for s in subnets])
        width = np.array([[s.embed_dim == dim for dim in self.space.embed_dim] for s in subnets])
        cell = (depth[:, :, None] & width[:, None]).reshape(len(subnets), -1)
        return np.concatenate([z, z**2, 3.0 * cell], axis=1)  # constants are hardly shrunk


def change_one(subnet: SubnetConfig, space: SearchSpace, rng: random.Random) -> SubnetConfig:
    """Draw one choice of a subnet again: width, depth, or heads or MLP ratio of a block."""
    place = rng.randrange(2 * subnet.depth + 2)
    heads, ratios = list(subnet.num_heads), list(subnet.mlp_ratio)
    depth, dim = subnet.depth, subnet.embed_dim
    if place < depth:
        heads[place] = rng.choice(space.num_heads)
    elif place < 2 * depth:
        ratios[place - depth] = rng.choice(space.mlp_ratio)
    elif place == 2 * depth:
        dim = rng.choice(space.embed_dim)
    else:
        depth = rng.choice(space.depth)
        heads += [rng.choice(space.num_heads) for _ in range(depth - len(heads))]
        ratios += [rng.choice(space.mlp_ratio) for _ in range(depth - len(ratios))]
    return SubnetConfig(depth, dim, tuple(heads[:depth]), tuple(ratios[:depth]))


METHODS: Mapping[str, Callable[[Run], None]] = MappingProxyType(
    {
        "random": random_search,
        "evolution (paper)": evolution,
        "local search": local_search,
        "guided by a model": guided_search,
        "additive optimum": additive_optimum,
    }
)
