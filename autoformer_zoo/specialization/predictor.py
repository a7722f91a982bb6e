"""Predict the top-1 accuracy of subnets with the weights of a trained supernet.

For each depth and width, the model is a polynomial of second order in the choices of the blocks:

    top1 = constant + sum_a linear[a] z[a] + sum_{a <= b} quadratic[a, b] z[a] z[b]

z holds the heads of all blocks, then their MLP ratios, scaled so that the smallest known choice is
-1 and the largest 1; 0 for blocks beyond the depth. Without the products of different choices it is
a sum over blocks (`Predictor.additive`).

NumPy only. The coefficients of each space are a file in `coefficients/`, made by
`python -m training.fit_predictor`; their sources and errors are in docs/specialize.md. A prediction
is an estimate, and holds for inherited weights only: not after fine-tuning, and not for another
supernet of the same space.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SearchSpace, SubnetConfig

Array = NDArray[Any]
FOLDER = Path(__file__).parent / "coefficients"
NORMAL_90 = 1.645  # half of a 90 % interval in standard deviations


@dataclass(frozen=True, slots=True)
class Top1:
    """A predicted top-1 accuracy in percent.

    Args:
        value: the estimate.
        low: lower end of the 90 % interval.
        high: upper end of the 90 % interval.
        extrapolated: True if no subnet behind the predictor had this depth with this width, or one
            of these heads or MLP ratios; the interval is wider then.
    """

    value: float
    low: float
    high: float
    extrapolated: bool


@dataclass(frozen=True, eq=False)
class Predictor:
    """The predictor of one space, as `load_predictor` returns it.

    Axes: K pairs of depth and width, L blocks of the deepest subnet, Z = 2L choices.

    Args:
        cells: known pairs of depth and embed_dim. (K, 2)
        num_heads: known choices, sorted.
        mlp_ratio: known choices, sorted.
        constant: in percent, see the module. (K,)
        linear: in percent, see the module. (K, Z)
        quadratic: in percent, see the module; 0 below the diagonal. (K, Z, Z)
        half_width: half of the 90 % interval in percent. (K,)
        about: what it was fitted to, and its errors in cross-validation, as JSON.
    """

    cells: Array
    num_heads: Array
    mlp_ratio: Array
    constant: Array
    linear: Array
    quadratic: Array
    half_width: Array
    about: Array

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What it was fitted to, and its errors in cross-validation."""
        return dict(json.loads(str(self.about)))

    def predict(self, subnets: Sequence[SubnetConfig]) -> NDArray[np.float64]:
        """Return the predicted top-1 accuracies in percent, one a subnet."""
        z, cells = np.nan_to_num(self._choices(subnets)), self._cells(subnets)
        values = np.empty(len(subnets))
        for k in np.unique(cells):
            x = z[cells == k]
            products = ((x @ self.quadratic[k]) * x).sum(1)
            values[cells == k] = self.constant[k] + x @ self.linear[k] + products
        return values

    def intervals(self, subnets: Sequence[SubnetConfig]) -> list[Top1]:
        """Return predictions with their 90 % intervals."""
        z, cells = self._choices(subnets), self._cells(subnets)
        away = [  # distance of each choice from the nearest known one
            np.abs(part[:, :, None] - _scaled(known, known)).min(2)
            for part, known in zip(
                np.split(z, 2, axis=1), (self.num_heads, self.mlp_ratio), strict=True
            )
        ]
        steps = np.nan_to_num(np.concatenate(away, axis=1))
        sizes = np.array([(s.depth, s.embed_dim) for s in subnets]).reshape(-1, 2)
        is_new = (sizes != self.cells[cells]).any(1)
        # A step to an unknown choice may change as much as a known step in that cell does, and an
        # unknown cell may differ as much as the known ones do.
        variance = np.square(self.linear[cells]).mean(1) * np.square(steps).sum(1)
        variance += np.where(is_new, self.constant.var(), 0)
        half = np.hypot(self.half_width[cells], NORMAL_90 * np.sqrt(variance))
        low_high_known = zip(self.predict(subnets), half, variance > 0, strict=True)
        return [Top1(float(v), float(v - h), float(v + h), bool(x)) for v, h, x in low_high_known]

    def additive(self, depth: int, embed_dim: int) -> tuple[float, NDArray[np.float64]]:
        """Return the part of the model that is a sum over blocks.

        Args:
            depth: number of blocks.
            embed_dim: width.

        Returns:
            A constant, and what each block adds, by the known choices: (depth, heads, MLP ratios);
            in percent.
        """
        k = int(self._nearest(np.array([[depth, embed_dim]]))[0])
        linear, square = self.linear[k].astype(float), np.diagonal(self.quadratic[k]).astype(float)
        heads, ratios = (
            a[:, None] * z + b[:, None] * z**2
            for a, b, z in zip(
                np.split(linear, 2),
                np.split(square, 2),
                (_scaled(known, known) for known in (self.num_heads, self.mlp_ratio)),
                strict=True,
            )
        )
        return float(self.constant[k]), (heads[:, :, None] + ratios[:, None, :])[:depth]

    def _choices(self, subnets: Sequence[SubnetConfig]) -> NDArray[np.float64]:
        return encode_choices(subnets, self.num_heads, self.mlp_ratio, self.linear.shape[1] // 2)

    def _cells(self, subnets: Sequence[SubnetConfig]) -> Array:
        return self._nearest(np.array([(s.depth, s.embed_dim) for s in subnets]).reshape(-1, 2))

    def _nearest(self, sizes: Array) -> Array:
        unit = np.maximum(np.ptp(self.cells, axis=0), 1)
        return np.abs((sizes[:, None] - self.cells) / unit).sum(2).argmin(1)


def predict_top1(space: str | SearchSpace, subnets: Sequence[SubnetConfig]) -> list[Top1]:
    """Predict the top-1 accuracies of subnets with inherited weights.

    Args:
        space: name of a space, or one of `SPACES`: whose supernet.
        subnets: which ones.

    Returns:
        Percent with a 90 % interval, one a subnet.

    Raises:
        ValueError: the space has no predictor.
    """
    return load_predictor(space_name(space)).intervals(subnets)


def load_predictor(space: str) -> Predictor:
    """Load the predictor of a space.

    Args:
        space: its name, or the path of a file that `training.fit_predictor` wrote.

    Raises:
        ValueError: there is none, or the file is no predictor.
    """
    return _read(space) if space.endswith(".npz") else _read_once(space)


def _read(space: str) -> Predictor:
    path = Path(space) if space.endswith(".npz") else FOLDER / f"{space}.npz"
    if not path.is_file():
        if space.endswith(".npz"):
            raise ValueError(f"{path} does not exist; expected a file of training.fit_predictor")
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.npz")))
        raise ValueError(
            f"space {space!r} has no accuracy predictor; expected one of {known}, or a .npz file "
            "made by python -m training.fit_predictor"
        )
    names = [field.name for field in fields(Predictor)]
    try:
        # np.load leaves a damaged file open that it opened itself.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return Predictor(**{name: file[name] for name in names})
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is no accuracy predictor ({error}); make one with "
            "python -m training.fit_predictor"
        ) from None


_read_once = cache(_read)  # for the package's own files: others may be fitted again


def encode_choices(
    subnets: Sequence[SubnetConfig], num_heads: Array, mlp_ratio: Array, blocks: int
) -> NDArray[np.float64]:
    """Return the scaled choices z of subnets, heads first; NaN for blocks beyond the depth.

    Args:
        subnets: which ones.
        num_heads: known choices, sorted.
        mlp_ratio: known choices, sorted.
        blocks: number of blocks, L; those beyond are left out.

    Returns:
        Shape (subnets, 2L).
    """
    absent = [np.nan] * blocks
    heads = [[*subnet.num_heads, *absent][:blocks] for subnet in subnets]
    ratios = [[*subnet.mlp_ratio, *absent][:blocks] for subnet in subnets]
    z = [_scaled(np.array(heads), num_heads), _scaled(np.array(ratios), mlp_ratio)]
    return np.concatenate([part.reshape(-1, blocks) for part in z], axis=1)


def _scaled(values: Array, known: Array) -> NDArray[np.float64]:
    """Scale choices so that the smallest known one is -1 and the largest 1."""
    low, high = float(known[0]), float(known[-1])
    return (2 * values - low - high) / (high - low or 1)


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
    raise ValueError(
        "the space is none of autoformer_zoo.SPACES, so it has no accuracy predictor; give a name"
    )
