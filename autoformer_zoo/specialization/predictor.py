"""Predict the top-1 accuracy of subnets with the weights of a trained supernet.

NumPy only. The coefficients of each space are a file in `coefficients/`, made by
`python -m training.fit_predictor`; where they come from and how good they are is in
docs/specialize.md. A prediction is an estimate: it is never called measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SearchSpace, SubnetConfig

FOLDER = Path(__file__).parent / "coefficients"


@dataclass(frozen=True, slots=True)
class Top1:
    """A predicted top-1 accuracy in percent.

    Args:
        value: the estimate.
        low: lower end of the 90 % interval.
        high: upper end of the 90 % interval.
        extrapolated: True if the subnet has a size, or a depth with a width, that none of the
            subnets behind the predictor had; the interval is wider then.
    """

    value: float
    low: float
    high: float
    extrapolated: bool


@dataclass(frozen=True)
class Predictor:
    """The predictor of one space; `load_predictor` makes it.

    Args:
        arrays: the content of the file.
    """

    arrays: dict[str, NDArray[Any]]

    def predict(self, subnets: Sequence[SubnetConfig]) -> NDArray[np.float64]:
        """Return the predicted top-1 accuracies in percent, one a subnet."""
        a = self.arrays
        values = np.empty(len(subnets))
        for i, subnet in enumerate(subnets):
            constant, effects = self.additive(subnet.depth, subnet.embed_dim)
            heads = _nearest(a["num_heads"], subnet.num_heads)
            ratios = _nearest(a["mlp_ratio"], subnet.mlp_ratio)
            values[i] = constant + effects[np.arange(subnet.depth), heads, ratios].sum()
        return values

    def additive(self, depth: int, embed_dim: int) -> tuple[float, NDArray[np.float64]]:
        """Return the additive part of the model at one depth and width.

        Args:
            depth: number of blocks.
            embed_dim: width.

        Returns:
            A constant, and what each block adds: (depth, choices of heads, choices of MLP ratio),
            choices as sorted in the space, in percent.
        """
        a = self.arrays
        distance = np.abs(a["cells"] - [depth, embed_dim]) / [1, 24]
        cell = int(distance.sum(1).argmin())
        return float(a["constant"][cell]), a["effects"][cell, :depth]

    def intervals(self, subnets: Sequence[SubnetConfig]) -> list[Top1]:
        """Return predictions with their 90 % intervals."""
        a = self.arrays
        known = {tuple(cell) for cell in a["cells"].tolist()}
        results = []
        for subnet, value in zip(subnets, self.predict(subnets).tolist(), strict=True):
            extrapolated = (
                (subnet.depth, subnet.embed_dim) not in known
                or not set(subnet.num_heads) <= set(a["num_heads"].tolist())
                or not set(subnet.mlp_ratio) <= set(a["mlp_ratio"].tolist())
            )
            half = float(a["half_width"]) * (3 if extrapolated else 1)
            results.append(Top1(value, value - half, value + half, extrapolated))
        return results


def predict_top1(space: str | SearchSpace, subnets: Sequence[SubnetConfig]) -> list[Top1]:
    """Predict the top-1 accuracies of subnets with inherited weights.

    Args:
        space: whose supernet; a name or one of `SPACES`.
        subnets: which ones.

    Returns:
        Percent with a 90 % interval, one a subnet.

    Raises:
        ValueError: the space has no predictor.
    """
    return load_predictor(space_name(space)).intervals(subnets)


def space_name(space: str | SearchSpace) -> str:
    """Return the name of a space.

    Raises:
        ValueError: it is none of `SPACES`.
    """
    if isinstance(space, str):
        return space
    for name, known in SPACES.items():
        if known == space:
            return name
    raise ValueError("the space is none of autoformer_zoo.SPACES, so it has no accuracy predictor")


@cache
def load_predictor(space: str) -> Predictor:
    """Load the predictor of a space.

    Args:
        space: its name, or the path of a file that `training.fit_predictor` wrote.

    Raises:
        ValueError: there is none.
    """
    path = FOLDER / f"{space}.npz" if space in SPACES else Path(space)
    if not path.is_file():
        having = ", ".join(sorted(file.stem for file in FOLDER.glob("*.npz")))
        raise ValueError(
            f"space {space!r} has no accuracy predictor; expected one of {having}, or a file made "
            "by python -m training.fit_predictor"
        )
    with np.load(path, allow_pickle=False) as file:
        return Predictor(dict(file))


def _nearest(choices: NDArray[Any], values: Sequence[float]) -> NDArray[np.intp]:
    return np.abs(choices[:, None] - np.asarray(values)).argmin(0)
