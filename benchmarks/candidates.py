"""Candidates per second of a search, against the explicit sliced form in fp32.

    python -m benchmarks.candidates --space nano --images 1000 --save
    python -m benchmarks.candidates --space tiny --images 128 --batch-size 8 \\
        --explicit-batch-size 32 --save

The explicit form is what the official code evaluates: every candidate sliced out of the supernet
anew for every batch, with relative position tensors of N x N x 64. Ours extracts the static network
once and runs the fastest exact form. Rounds are interleaved, each with another random subnet, the
same for all. Weights are random: times do not depend on them. The last line is one JSON document.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from autoformer_zoo.cli.command import run_command
from autoformer_zoo.factory import extract_subnet
from autoformer_zoo.network.supernet import Supernet
from autoformer_zoo.published import find_space
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.weights.checkpoint import SupernetWeights
from benchmarks.measure.results import RESULTS, save_rows
from benchmarks.measure.rows import (
    RatioRow,
    Row,
    Setting,
    compared,
    current_environment,
    rate,
    timed,
)
from benchmarks.measure.timing import (
    Plan,
    Run,
    measure,
    ratio_of_medians,
    summarise,
    wall_stopwatch,
)
from benchmarks.train_step import RATIOS, ROWS

WHAT = "candidate"
Way = tuple[str, str]  # backend and precision
BASELINE: Way = ("explicit, sliced", "fp32")


def measure_search(
    space: str = "nano",
    images: int = 250,
    batch_size: int = 100,
    explicit_batch_size: int = 250,
    rounds: int = 5,
    bf16: bool = False,
) -> tuple[list[Row], list[RatioRow]]:
    """Time the evaluation of random candidates in interleaved rounds.

    Args:
        space: which search space.
        images: that each candidate classifies.
        batch_size: images at a time, ours.
        explicit_batch_size: images at a time in the explicit form, which wants other ones.
        rounds: random subnets, each timed in every way.
        bf16: time our way under bf16 autocast too.

    Returns:
        Rows for each way, and the ratio of its time to the explicit form's.

    Raises:
        ValueError: the space is unknown, or a number is below 1.
    """
    sizes = (images, batch_size, explicit_batch_size)
    for what, value in zip(("images", "batch_size", "explicit_batch_size"), sizes, strict=True):
        if value < 1:
            raise ValueError(f"{what} is {value}; expected 1 or more")
    plan = Plan(rounds, warmup=1, settle=0)
    setting = find_space(space)
    x = torch.randn(images, 3, setting.img_size, setting.img_size)
    torch.manual_seed(0)
    supernet = Supernet(setting, attention="explicit").eval()
    weights = _weights(supernet, setting)

    def explicit(subnet: SubnetConfig) -> None:
        for batch in x.split(explicit_batch_size):
            supernet(batch, subnet).argmax(1)

    def extracted(subnet: SubnetConfig) -> None:
        network = extract_subnet(weights, subnet)
        for batch in x.split(batch_size):
            network(batch).argmax(1)

    def half(subnet: SubnetConfig) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            extracted(subnet)

    ways: dict[Way, Callable[[SubnetConfig], None]] = {
        BASELINE: explicit,
        ("extracted", "fp32"): extracted,
    }
    if bf16:
        ways["extracted", "bf16"] = half
    runs = {name: _run(way, setting) for name, way in ways.items()}
    with torch.no_grad():
        times = measure(runs, plan, wall_stopwatch())
    environment, rows, ratios = current_environment("cpu"), [], []
    for name, spent in times.items():
        backend, precision = name
        batch = explicit_batch_size if name == BASELINE else batch_size
        place = Setting(precision, batch, torch.get_num_threads())
        size = f"{images} images of {setting.img_size}x{setting.img_size}"
        row = timed(WHAT, space, summarise(spent), place, environment, size, backend)
        rows += [row, rate(row, "throughput", 1, "candidates/s")]
        if name != BASELINE:
            ratio = ratio_of_medians(spent, times[BASELINE])
            ratios.append(compared(row, f"explicit fp32, {explicit_batch_size} at a time", ratio))
    return rows, ratios


def _weights(supernet: Supernet, space: SearchSpace) -> SupernetWeights:
    tensors = {name: p.detach() for name, p in supernet.weights.named_parameters()}
    sizes = ((space.img_size,) * 2, (space.patch_size,) * 2)
    return SupernetWeights(tensors, space.supernet, "prefix", *sizes, 3, space.num_classes)


def _run(way: Callable[[SubnetConfig], None], space: SearchSpace) -> Run:
    rng = random.Random(0)  # for each way anew, so that all get the same subnets
    subnets: Iterator[SubnetConfig] = iter(lambda: space.sample(rng), None)
    return lambda: way(next(subnets))


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""

    def command(
        space: str = "nano",
        images: int = 250,
        batch_size: int = 100,
        explicit_batch_size: int = 250,
        rounds: int = 5,
        bf16: bool = False,
        save: bool = False,
        results: Path = RESULTS,
    ) -> None:
        """Measure candidates per second against the explicit sliced form in fp32.

        Args:
            space: which search space.
            images: that each candidate classifies.
            batch_size: images at a time, ours.
            explicit_batch_size: images at a time in the explicit form.
            rounds: random subnets, each timed in every way.
            bf16: time bf16 too.
            save: keep the rows.
            results: folder of the files of rows.
        """
        size = (images, batch_size, explicit_batch_size)
        rows, ratios = measure_search(space, *size, rounds, bf16)
        if save:
            save_rows(results / ROWS, rows)
            save_rows(results / RATIOS, ratios)
        for row in rows:
            if row.what != WHAT:
                print(f"{row.backend:18s}{row.precision} {row.median:9.3f} candidates/s")
        for each in ratios:
            print(
                f"{each.backend} {each.precision}: {each.ratio:.3f} [{each.low:.3f}, "
                f"{each.high:.3f}] of the time of {each.baseline}"
            )
        told: dict[str, object] = {
            "rows": [asdict(row) for row in rows],
            "ratios": [asdict(row) for row in ratios],
        }
        print(json.dumps(told))

    return run_command("python -m benchmarks.candidates", command, argv)


if __name__ == "__main__":
    sys.exit(main())
