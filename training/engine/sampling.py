"""Which subnets a step trains: a function of (seed, step), so the same on every machine.

Uniform single path is AutoFormer's (arXiv 2107.00651, section 3.3). Sandwich is the rule of
universally slimmable networks and BigNAS (arXiv 1903.05134, 2003.11142): the largest subnet learns
from the labels, the smallest and some random ones from the largest's logits.
"""

from __future__ import annotations

import random

from autoformer_zoo.published import SUBNETS
from autoformer_zoo.space import SearchSpace, SubnetConfig


def subnets_of_step(
    space: SearchSpace, seed: int, step: int, sandwich_random: int = 0, smallest: bool = True
) -> tuple[SubnetConfig, ...]:
    """Return the subnets that a step trains, in order.

    Args:
        space: where to draw from.
        seed: of the run.
        step: number of the step.
        sandwich_random: random subnets of a sandwich step; 0 for uniform sampling.
        smallest: False leaves the smallest subnet out of a sandwich step.

    Returns:
        One random subnet; under sandwich the largest, the smallest, and random ones, of which all
        but the first learn from the first. What is drawn is the same with and without the smallest.
    """
    rng = random.Random(f"{seed}/{step}")
    if not sandwich_random:
        return (space.sample(rng),)
    drawn = [space.sample(rng) for _ in range(sandwich_random)]
    extremes = (space.largest, space.smallest) if smallest else (space.largest,)
    return (*extremes, *drawn)


def sample_different(space: SearchSpace, count: int, rng: random.Random) -> list[SubnetConfig]:
    """Draw `count` different subnets, or all of a space that has fewer."""
    drawn: dict[SubnetConfig, None] = {}
    while len(drawn) < min(count, space.size):
        drawn[space.sample(rng)] = None
    return list(drawn)


def parse_subnet(text: str) -> SubnetConfig:
    """Return the subnet of a published name, or of JSON.

    Raises:
        ValueError: it is neither; the text lists the names.
    """
    if text in SUBNETS:
        return SUBNETS[text]
    if text.lstrip().startswith("{"):
        return SubnetConfig.from_json(text)
    raise ValueError(
        f"subnet is {text!r}; expected a SubnetConfig as JSON or one of {', '.join(SUBNETS)}"
    )
