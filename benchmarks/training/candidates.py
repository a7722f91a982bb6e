"""Candidates per second of a search, against the explicit sliced form in fp32.

    python -m benchmarks.training.candidates --space nano --images 1000 --save
    python -m benchmarks.training.candidates --space tiny --images 128 --batch-size 8 \\
        --explicit-batch-size 32 --save

The explicit form is what the official code evaluates: every candidate is sliced out of the supernet
again for every batch, with relative position tensors of N x N x 64. The search of this package
extracts the static network once and runs the fastest exact form. Rounds are interleaved, each with
another random subnet, the same for all methods. Weights are random: times do not depend on them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autoformer_zoo.models.factory import extract_subnet
from autoformer_zoo.network.supernet import Supernet
from autoformer_zoo.published import find_space
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.specialization.latency.timing import Call, wall_stopwatch
from autoformer_zoo.weights.checkpoint import SupernetWeights
from autoformer_zoo.weights.layouts import Architecture
from benchmarks.measure.options import BenchmarkOptions, check_positive, run_benchmark
from benchmarks.measure.rows import (
    Row,
    Setting,
    current_environment,
    latency_row,
    ratio_row,
    throughput_row,
)
from benchmarks.measure.timing import TimingConfig, measure
from benchmarks.training.train_step import FILE, draw_subnets

NAME = "training.candidates"
WHAT = "candidate"
Method = tuple[str, str]  # backend and precision
BASELINE: Method = ("explicit, sliced", "fp32")
EXTRACTED: Method = ("extracted", "fp32")
EXTRACTED_BF16: Method = ("extracted", "bf16")


@dataclass(frozen=True, slots=True)
class CandidateOptions(BenchmarkOptions):
    """Measure candidates per second against the explicit sliced form in fp32."""

    space: str = "nano"  # search space, by name or as JSON
    images: int = 250  # images that each candidate classifies
    batch_size: int = 100  # images at a time in the extracted network
    explicit_batch_size: int = 250  # images at a time in the explicit form
    rounds: int = 5  # random subnets, each timed by every method
    bf16: bool = False  # time the extracted network under bf16 autocast too


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_benchmark(NAME, CandidateOptions, argv, measure_candidates, file=FILE)


def measure_candidates(options: CandidateOptions) -> Iterator[list[Row]]:
    """Time the evaluation of random candidates in interleaved rounds.

    Yields:
        Rows of each method, and the ratio of its time to the explicit form's.

    Raises:
        ValueError: the space is unknown, or a number is below 1.
    """
    check_positive(options, "images", "batch_size", "explicit_batch_size")
    timing = TimingConfig(options.rounds, warmup=1, settle=0)
    space = find_space(options.space)
    torch.manual_seed(0)
    images = torch.randn(options.images, 3, space.img_size, space.img_size)
    batch_sizes = {
        BASELINE: options.explicit_batch_size,
        EXTRACTED: options.batch_size,
        **({EXTRACTED_BF16: options.batch_size} if options.bf16 else {}),
    }
    calls = _calls(space, {name: images.split(size) for name, size in batch_sizes.items()})
    with torch.no_grad():
        times = measure(calls, timing, wall_stopwatch())
    environment = current_environment("cpu")
    size = f"{options.images} images of {space.img_size}x{space.img_size}"
    for (backend, precision), times_ms in times.items():
        batch, threads = batch_sizes[backend, precision], torch.get_num_threads()
        setting = Setting(precision, batch, threads, options.space, backend, size)
        row = latency_row(WHAT, times_ms, setting, environment)
        rows = [row, throughput_row(row, "throughput", 1, "candidates/s")]
        if (backend, precision) != BASELINE:
            baseline = f"explicit fp32, {options.explicit_batch_size} at a time"
            rows.append(ratio_row(row, times_ms, baseline, times[BASELINE]))
        yield rows


def _calls(space: SearchSpace, batches: Mapping[Method, Sequence[Tensor]]) -> dict[Method, Call]:
    """Return for each method a call that classifies the images with the next random subnet."""
    supernet = Supernet(space, attention="explicit").eval()
    weights = _weights(supernet, space)

    def explicit(subnet: SubnetConfig) -> None:
        for batch in batches[BASELINE]:
            supernet(batch, subnet).argmax(1)

    def extracted(subnet: SubnetConfig) -> None:
        network = extract_subnet(weights, subnet)
        for batch in batches[EXTRACTED]:
            network(batch).argmax(1)

    def half(subnet: SubnetConfig) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            extracted(subnet)

    def with_subnets(evaluate: Callable[[SubnetConfig], None]) -> Call:
        subnets = draw_subnets(space)  # drawn for each method again, so that all get the same
        return lambda: evaluate(next(subnets))

    methods = {BASELINE: explicit, EXTRACTED: extracted, EXTRACTED_BF16: half}
    return {name: with_subnets(methods[name]) for name in batches}


def _weights(supernet: Supernet, space: SearchSpace) -> SupernetWeights:
    tensors = {name: p.detach() for name, p in supernet.weights.named_parameters()}
    return SupernetWeights(tensors, Architecture.of_space(space), "prefix")


if __name__ == "__main__":
    sys.exit(main())
