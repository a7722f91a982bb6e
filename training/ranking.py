"""Whether a cheaper way to score subnets ranks them as the exact one does."""

from __future__ import annotations

import random

from autoformer_zoo.space import SearchSpace
from training.comparisons import kendall_tau
from training.evolution import Score
from training.sampling import sample_different

LEAST_TAU = 0.98  # Kendall's, of two scorings that may stand for each other
COMPARED = 50  # random subnets


def compare_rankings(space: SearchSpace, one: Score, other: Score) -> float:
    """Return Kendall's tau of two scorings of the same random subnets; nan where all are equal."""
    subnets = sample_different(space, COMPARED, random.Random("ranking"))
    return kendall_tau(one(subnets), other(subnets))


def require_same_ranking(space: SearchSpace, fp32: Score, bf16: Score) -> float:
    """Check that scores in bf16 may stand for those in fp32; returns Kendall's tau.

    Raises:
        ValueError: they rank subnets otherwise.
    """
    tau = compare_rankings(space, fp32, bf16)
    if not tau >= LEAST_TAU:  # nan is no ranking
        raise ValueError(
            f"precision is bf16, which ranks {COMPARED} random subnets otherwise than fp32: "
            f"Kendall's tau is {tau:.3f}, expected {LEAST_TAU} or more; take fp32"
        )
    return tau
