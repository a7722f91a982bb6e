"""How well a latency profile predicts: unseen subnets, timed in the same rounds.

    python -m benchmarks.budgets.profiles --space tiny --save
    python -m benchmarks.budgets.profiles --space tiny --backend onnxruntime --precision int8 --save

Subnets of the profile's design and random ones that it does not see are timed together in
interleaved rounds; the profile is fitted to the first, and predicts the second. `--plot` draws
predicted against measured.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from autoformer_zoo.published import find_space
from autoformer_zoo.specialization.latency.measure import (
    ADAPTED,
    Timed,
    draw_design,
    make_profile,
    time_subnets,
)
from autoformer_zoo.specialization.latency.profile import (
    Backend,
    LatencyProfile,
    Precision,
    RunSetting,
)
from benchmarks.measure.options import BenchmarkOptions, check_positive, run_benchmark
from benchmarks.measure.rows import Row, Setting, current_environment, make_row

NAME = "budgets.profiles"
WITHIN_PERCENT = 10
MEDIAN = "median error"
FIGURES = (
    *(MEDIAN, "90th percentile", "largest error", f"within {WITHIN_PERCENT} %"),
    *("standard error of a timing", "median left-out error"),
)


@dataclass(frozen=True, slots=True)
class ProfileOptions(BenchmarkOptions):
    """Check how well latency profiles predict unseen subnets."""

    space: str = "small"  # search space, by name or as JSON
    backend: Backend = "eager"  # what runs the networks
    precision: Precision = "fp32"  # their number format
    batch_size: int = 1  # images per call
    threads: int = torch.get_num_threads()  # on the CPU
    design: int = 45  # subnets that the profile is fitted to
    unseen: int = 100  # random subnets that it predicts
    seconds: float = 120.0  # of timing, about; two rounds at least
    adapt: Path | None = None  # profile of another machine to adapt to the first ten subnets
    plot: Path | None = None  # draw predicted against measured to this file


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_benchmark(NAME, ProfileOptions, argv, measure_errors, file="profiles")


def measure_errors(options: ProfileOptions) -> Iterator[list[Row]]:
    """Time subnets, fit a profile to some of them and predict the others.

    Yields:
        Rows of the errors in percent, with the spread of repeated timings.

    Raises:
        ValueError: an option is out of range.
    """
    check_positive(options, "design", "unseen", "seconds")
    space = find_space(options.space)
    how = RunSetting("cpu", options.backend, options.precision, options.batch_size, options.threads)
    rng = random.Random("unseen")
    design = draw_design(space, options.design)
    unseen = [space.sample(rng) for _ in range(options.unseen)]
    timed = time_subnets(
        space,
        how,
        [*design, *unseen],
        options.seconds,
        fewest=None,
        max_noise_percent=math.inf,  # it is one of the figures
    )
    other = LatencyProfile.load(options.adapt) if options.adapt else None
    used = min(ADAPTED, len(design)) if other else len(design)
    fitted = Timed(timed.subnets[:used], timed.ms[:used], timed.noise_percent)
    profile = make_profile(space, how, fitted, other)
    cost = profile.cost(space)
    measured = np.array(timed.ms[len(design) :])
    predicted = np.array([cost.value(subnet) for subnet in timed.subnets[len(design) :]])
    errors = 100 * np.abs(predicted / measured - 1)
    if options.plot is not None:
        _draw(options.plot, measured, predicted, f"{options.space}, {how}")
    setting = Setting(
        how.precision, how.batch_size, how.threads, options.space, how.backend, "unseen subnets"
    )
    figures = (
        np.median(errors),
        np.quantile(errors, 0.9),
        errors.max(),
        100 * (errors <= WITHIN_PERCENT).mean(),
        timed.noise_percent,
        profile.error_percent[0],
    )
    environment = current_environment("cpu", ["onnxruntime"])
    yield [
        make_row(what, float(value), "%", setting, environment, len(errors))
        for what, value in zip(FIGURES, figures, strict=True)
    ]


def _draw(
    path: Path, measured: NDArray[np.float64], predicted: NDArray[np.float64], title: str
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    ends = [
        0.95 * min(measured.min(), predicted.min()),
        1.05 * max(measured.max(), predicted.max()),
    ]
    axes.plot(ends, ends, "k-", linewidth=0.8)
    for share in (0.9, 1.1):
        axes.plot(ends, [share * end for end in ends], "k:", linewidth=0.8)
    axes.plot(measured, predicted, ".", alpha=0.7)
    axes.set_xlabel("measured, ms")
    axes.set_ylabel("predicted, ms (dotted: 10 % off)")
    axes.set_title(title, fontsize=9)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
