"""Which subnets a step trains: a function of (seed, step), so the same on every machine.

Uniform single path is AutoFormer's (arXiv 2107.00651, section 3.3). Sandwich is the rule of
universally slimmable networks and BigNAS (arXiv 1903.05134, 2003.11142): the largest subnet learns
from the labels, the smallest and some random ones from the largest's answers.
"""

from __future__ import annotations

import random

from autoformer_zoo.published import SUBNETS
from autoformer_zoo.space import SearchSpace, SubnetConfig
from training.config import TrainConfig


def subnets_of_step(
    config: TrainConfig, space: SearchSpace, fixed: SubnetConfig | None, step: int
) -> tuple[SubnetConfig, ...]:
    """Return the subnets that a step trains, in order.

    Args:
        config: says how to sample.
        space: where to draw from.
        fixed: the subnet of sampling fixed.
        step: number of the step.

    Returns:
        One subnet; under sandwich the largest, the smallest, and random ones, of which all but the
        first learn from the first.
    """
    if fixed is not None:
        return (fixed,)
    if config.sampling == "uniform":
        return (sample_subnet(space, config.seed, step),)
    rng = random.Random(f"{config.seed}/{step}")
    drawn = [space.sample(rng) for _ in range(config.sandwich_random)]
    return (space.largest, space.smallest, *drawn)


def sample_subnet(space: SearchSpace, seed: int, step: int) -> SubnetConfig:
    """Draw the subnet of a step: a function of (seed, step), so the same on every machine."""
    return space.sample(random.Random(f"{seed}/{step}"))


def sample_different(space: SearchSpace, count: int, rng: random.Random) -> list[SubnetConfig]:
    """Draw so many different subnets, or all of a space that has fewer."""
    drawn: dict[SubnetConfig, None] = {}
    while len(drawn) < min(count, space.size):
        drawn[space.sample(rng)] = None
    return list(drawn)


def parse_subnet(text: str) -> SubnetConfig:
    """Return the subnet of a published name, or of JSON.

    Raises:
        ValueError: it is neither; the text names what would be.
    """
    if text in SUBNETS:
        return SUBNETS[text]
    if text.lstrip().startswith("{"):
        return SubnetConfig.from_json(text)
    raise ValueError(
        f"subnet is {text!r}; expected a SubnetConfig as JSON or one of {', '.join(SUBNETS)}"
    )
