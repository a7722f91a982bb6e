"""A latency profile: the time of every block of a space on one machine, fitted to timed networks.

Blocks that are timed alone find their weights in the cache, so whole subnets are timed
(`measure.py`). The latency of a subnet is then a sum: a part for the width, and for each block a
part for its attention, which depends on the heads, and one for its MLP, which depends on the ratio.
For these parts a physical prior is fitted first (so much a network, a block and a multiply-add),
and a ridge regression of relative errors says how far each part is from it. A profile of another
machine is a prior as well: some ten subnets then suffice.

No torch here: profiles are read, fitted and used with NumPy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from autoformer_zoo.network.complexity import count_macs
from autoformer_zoo.space import SearchSpace, SubnetConfig, from_mapping
from autoformer_zoo.specialization.constraints import Cost

Device = Literal["cpu", "cuda"]
Backend = Literal["eager", "compile", "onnxruntime"]
Precision = Literal["fp32", "bf16", "int8"]
Array = NDArray[np.float64]

NS_PER_MS = 1_000_000
PRECISIONS: dict[Backend, tuple[Precision, ...]] = {
    "eager": ("fp32", "bf16"),
    "compile": ("fp32", "bf16"),
    "onnxruntime": ("fp32", "int8"),
}
# Standard deviations, relative: of a part from the physical prior, of a part from another machine's
# profile after scaling, and of a timed network from the sum of its parts.
PRIOR_SD, ADAPT_SD, FIT_SD = 0.3, 0.1, 0.01


def export_precision(precision: str) -> Literal["fp32", "int8-dynamic"]:
    """Return what `export_onnx` calls the precision of the file that is timed."""
    return "int8-dynamic" if precision == "int8" else "fp32"


@dataclass(frozen=True, slots=True)
class RunSetting:
    """How a network runs.

    Args:
        device: where.
        backend: what runs it: "eager" is `az.freeze(model)` on the CPU, "compile" torch.compile.
        precision: "int8" is the exporter's int8-dynamic.
        batch_size: images per call.
        threads: on the CPU.

    Raises:
        ValueError: a value is unknown, or they do not go together.
    """

    device: Device = "cpu"
    backend: Backend = "eager"
    precision: Precision = "fp32"
    batch_size: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        for name, known in (("device", Device), ("backend", Backend), ("precision", Precision)):
            if getattr(self, name) not in get_args(known):
                expected = ", ".join(get_args(known))
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {expected}")
        if self.precision not in PRECISIONS[self.backend]:
            raise ValueError(
                f"precision is {self.precision!r}; {self.backend} is profiled in "
                f"{' and '.join(PRECISIONS[self.backend])}"
            )
        if self.device == "cuda" and self.backend == "onnxruntime":
            raise ValueError("onnxruntime is profiled on the CPU only; use device cpu")
        for name in ("batch_size", "threads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a positive whole number")

    def __str__(self) -> str:
        return (
            f"{self.device}, {self.backend} {self.precision}, batch {self.batch_size}, "
            f"{self.threads} threads"
        )


@dataclass(frozen=True, slots=True)
class BlockLatency:
    """The latency of one block."""

    embed_dim: int
    num_heads: int
    mlp_ratio: float
    ns: int


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """Latencies of all blocks of a space on one machine, and of everything around them.

    Args:
        setting: how the networks ran.
        machine: processor or card, and number of processors.
        versions: of the libraries.
        date: of the measurement, UTC.
        img_size: input side in pixels.
        patch_size: patch side in pixels.
        num_timed: timed subnets behind it.
        noise_percent: standard error of the time of one subnet, by repeating it.
        error_percent: median and 90th percentile of the error for subnets that were left out of
            the fit, one at a time.
        rest_ns: everything but the blocks, by embed_dim as text (JSON has no other keys).
        blocks: one entry for every width, heads and MLP ratio of the space.

    Raises:
        ValueError: a value has the wrong type or is out of its range.
    """

    setting: RunSetting
    machine: str
    versions: str
    date: str
    img_size: int
    patch_size: int
    num_timed: int
    noise_percent: float
    error_percent: tuple[float, float]
    rest_ns: dict[str, int]
    blocks: tuple[BlockLatency, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.setting, RunSetting):  # as it comes from JSON
            object.__setattr__(self, "setting", from_mapping(RunSetting, self.setting))
        made = (
            b if isinstance(b, BlockLatency) else from_mapping(BlockLatency, b) for b in self.blocks
        )
        object.__setattr__(self, "blocks", tuple(made))
        for name, number in self._numbers():
            if (
                isinstance(number, bool)
                or not isinstance(number, (int, float))
                or not 0 <= number < 2**63
            ):
                raise ValueError(f"{name} is {number!r:.60}; expected a number of 0 or more")

    def _numbers(self) -> list[tuple[str, Any]]:
        named = [(name, getattr(self, name)) for name in ("img_size", "patch_size", "num_timed")]
        named += [("noise_percent", self.noise_percent)]
        named += [("error_percent", value) for value in self.error_percent]
        named += [(f"rest_ns.{dim}", ns) for dim, ns in self.rest_ns.items()]
        for i, block in enumerate(self.blocks):
            named += [(f"blocks.{i}.{name}", value) for name, value in asdict(block).items()]
        return named

    def to_json(self) -> str:
        """Return indented JSON; `from_json` turns it back."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> LatencyProfile:
        """Make a profile from `to_json`'s output.

        Raises:
            ValueError: it is not JSON, a key is missing or unknown, or a value is refused.
        """
        try:
            return from_mapping(cls, json.loads(text))
        except Exception as error:  # besides json's own, a RecursionError for deep nesting
            raise ValueError(
                f"not a latency profile ({' '.join(str(error).split())}); make one with "
                "`autoformer-zoo profile`"
            ) from None

    @classmethod
    def load(cls, path: Path) -> LatencyProfile:
        """Read a file; raises as `from_json` does, with the file's name."""
        try:
            return cls.from_json(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def cost(self, space: SearchSpace) -> Cost:
        """Return the latency as a cost of subnets of `space`.

        Raises:
            ValueError: the profile is of other sizes, or lacks a block of the space.
        """
        sizes = (space.img_size, space.patch_size)
        if sizes != (self.img_size, self.patch_size):
            raise ValueError(
                f"the latency profile is for images and patches of "
                f"{self.img_size, self.patch_size} px, the space has {sizes}; measure another one"
            )
        by_block = {(b.embed_dim, b.num_heads, b.mlp_ratio): b.ns for b in self.blocks}
        for key in product(space.embed_dim, space.num_heads, space.mlp_ratio):
            if key not in by_block or str(key[0]) not in self.rest_ns:
                raise ValueError(
                    f"the latency profile lacks the block (embed_dim, heads, mlp_ratio) = {key}; "
                    "measure another one"
                )
        return Cost(
            "latency_ms",
            lambda dim: self.rest_ns[str(dim)],
            lambda dim, heads, ratio: by_block[dim, heads, ratio],
            NS_PER_MS,
        )


@dataclass(frozen=True, slots=True)
class Fit:
    """Parts of latencies, fitted to timed subnets.

    Args:
        rest_ms: everything but the blocks, by embed_dim.
        block_ms: one block, by embed_dim, heads and MLP ratio.
        errors: relative error of each timed subnet, predicted from all others.
    """

    rest_ms: dict[int, float]
    block_ms: dict[tuple[int, int, float], float]
    errors: Array

    @property
    def error_percent(self) -> tuple[float, float]:
        """Median and 90th percentile of the absolute errors."""
        size = 100 * np.abs(self.errors)
        return float(np.median(size)), float(np.quantile(size, 0.9))


def fit(
    space: SearchSpace,
    subnets: Sequence[SubnetConfig],
    times_ms: Sequence[float],
    other: LatencyProfile | None = None,
) -> Fit:
    """Fit the parts of latencies to timed subnets.

    Args:
        space: whose parts.
        subnets: what was timed; at least 3.
        times_ms: their latencies.
        other: profile of another machine or setting, which is adapted.

    Raises:
        ValueError: there are too few subnets or `other` is of another space.
    """
    if len(subnets) < 3:
        raise ValueError(f"{len(subnets)} timed subnets given; expected 3 or more")
    parts = _Parts(space)
    times = np.asarray(times_ms, dtype=np.float64)
    rows = np.stack([parts.row(subnet) for subnet in subnets]) / times[:, None]  # of relative times
    if other is None:
        prior, sd = _physical_prior(parts, rows), PRIOR_SD
    else:
        prior, sd = parts.of_profile(other), ADAPT_SD
        prior = prior / np.median(rows @ prior)
    # Deviations from the prior, in units of its own standard deviation.
    scaled = rows * (prior * sd)
    gram = scaled @ scaled.T + FIT_SD**2 * np.eye(len(rows))
    residual = 1 - rows @ prior
    weights = np.linalg.solve(gram, residual)
    values = np.maximum(prior * (1 + sd * (scaled.T @ weights)), 0.0)
    left_out = weights / np.diag(np.linalg.inv(gram))  # of a Gaussian process, in closed form
    return Fit(*parts.to_blocks(values), errors=left_out)


class _Parts:
    """The unknowns of a fit: for each width the rest, attention by heads, MLP by ratio."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        names = [
            (dim, *part)
            for dim in space.embed_dim
            for part in [
                ("rest", 0),
                *(("heads", heads) for heads in space.num_heads),
                *(("ratio", ratio) for ratio in space.mlp_ratio),
            ]
        ]
        self.index = {name: i for i, name in enumerate(names)}
        self.names = names

    def row(self, subnet: SubnetConfig) -> Array:
        """Return how often a subnet has each part."""
        row = np.zeros(len(self.names))
        row[self.index[subnet.embed_dim, "rest", 0]] = 1
        for heads, ratio in zip(subnet.num_heads, subnet.mlp_ratio, strict=True):
            row[self.index[subnet.embed_dim, "heads", heads]] += 1
            row[self.index[subnet.embed_dim, "ratio", ratio]] += 1
        return row

    def macs(self) -> Array:
        """Return the multiply-adds of each part."""
        space = self.space
        sizes = (space.img_size, space.patch_size, space.num_classes)

        def count(depth: int, dim: int, heads: int, ratio: float) -> int:
            return count_macs(SubnetConfig.uniform(depth, dim, heads, ratio), *sizes)

        values = np.zeros(len(self.names))
        for i, (dim, kind, choice) in enumerate(self.names):
            one = count(1, dim, 1, 1.0)
            attention = count(1, dim, 2, 1.0) - one  # of one head
            mlp = count(1, dim, 1, 2.0) - one  # at ratio 1
            amounts = {"rest": one - attention - mlp, "heads": attention, "ratio": mlp}
            values[i] = amounts[kind] * (choice or 1)
        return values

    def of_profile(self, profile: LatencyProfile) -> Array:
        """Split the blocks of a profile into their two parts, in ms."""
        cost = profile.cost(self.space)
        values = np.zeros(len(self.names))
        macs = self.macs()
        for dim in self.space.embed_dim:
            values[self.index[dim, "rest", 0]] = cost.rest(dim) / NS_PER_MS
            blocks = (
                np.array(
                    [
                        [cost.block(dim, heads, ratio) for ratio in self.space.mlp_ratio]
                        for heads in self.space.num_heads
                    ]
                )
                / NS_PER_MS
            )  # (heads, ratios)
            by_heads = [self.index[dim, "heads", heads] for heads in self.space.num_heads]
            by_ratio = [self.index[dim, "ratio", ratio] for ratio in self.space.mlp_ratio]
            # How a sum splits is arbitrary: at the first choices as the multiply-adds do.
            share = macs[by_heads[0]] / (macs[by_heads[0]] + macs[by_ratio[0]])
            values[by_heads] = blocks.mean(1) - blocks.mean() + share * blocks.mean()
            values[by_ratio] = blocks.mean(0) - blocks.mean() + (1 - share) * blocks.mean()
        return np.maximum(values, 1e-9)

    def to_blocks(
        self, values: Array
    ) -> tuple[dict[int, float], dict[tuple[int, int, float], float]]:
        """Return the rest by width, and the sum of both parts of each block."""
        space = self.space
        rest = {dim: float(values[self.index[dim, "rest", 0]]) for dim in space.embed_dim}
        blocks = {
            (dim, heads, ratio): float(
                values[self.index[dim, "heads", heads]] + values[self.index[dim, "ratio", ratio]]
            )
            for dim, heads, ratio in product(space.embed_dim, space.num_heads, space.mlp_ratio)
        }
        return rest, blocks


def _physical_prior(parts: _Parts, rows: Array) -> Array:
    """Return parts that cost so much a network, so much a half of a block, so much a multiply-add.

    The three prices are the non-negative ones of the least relative error.
    """
    is_rest = np.array([kind == "rest" for _, kind, _ in parts.names])
    features = np.stack([is_rest, ~is_rest, parts.macs()], 1).astype(float)
    features[:, 2] /= features[:, 2].max()
    prices = _non_negative(rows @ features)
    # A small share of the whole keeps every part positive, so that it can be corrected.
    floor = 1e-3 / rows.sum(1).max()
    return np.maximum(features @ prices, floor)


def _non_negative(matrix: Array) -> Array:
    """Return the non-negative x with the least squares of `matrix @ x - 1`, for a few columns."""
    columns = matrix.shape[1]
    best, least = np.zeros(columns), math.inf
    for used in product((False, True), repeat=columns):
        chosen = np.flatnonzero(used)
        if not len(chosen):
            continue
        x = np.linalg.lstsq(matrix[:, chosen], np.ones(len(matrix)), rcond=None)[0]
        error = float(((matrix[:, chosen] @ x - 1) ** 2).sum())
        if (x >= 0).all() and error < least:
            least, best = error, np.zeros(columns)
            best[chosen] = x
    return best
