"""Accuracy against time: published top-1 over the latency measured here, for the zoo and DeiT.

    python -m benchmarks.pareto --device cpu --save
    python -m benchmarks.pareto --quick

The accuracies are what the authors state for their weights on ImageNet-1k; none was measured here,
and every table and image says so. The latency is measured, with random weights of the same
architecture. Models without a published accuracy are not in it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from autoformer_zoo.published import PUBLISHED
from benchmarks.latency import LatencyOptions, measure_groups
from benchmarks.measure.options import run_command, shortened
from benchmarks.measure.results import RESULTS, save_rows
from benchmarks.measure.rows import Row, restated

PROGRAM = "python -m benchmarks.pareto"
ROWS = "pareto.csv"

# Touvron et al., arXiv 2012.12877, table 7: without distillation, at 224 px.
DEIT_TOP1 = MappingProxyType(
    {
        "deit_tiny_patch16_224": 72.2,
        "deit_small_patch16_224": 79.8,
        "deit_base_patch16_224": 81.8,
    }
)


@dataclass(frozen=True, slots=True)
class ParetoOptions:
    """Time every model whose accuracy is published, and set both side by side."""

    device: Literal["cpu", "cuda"] = "cpu"  # where to run
    batch_size: tuple[int, ...] = (1,)  # images
    threads: int = 2  # of torch, on the CPU
    backend: Literal["eager", "compile"] = "eager"  # as is, or by torch.compile
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of weights and images
    models: tuple[str, ...] = ()  # of those with a published accuracy; all where none is named
    rounds: int = 30  # timed calls of each model, at most
    seconds: float = 60.0  # for each batch size, about
    quick: bool = False  # the tiny ones in few rounds, where nothing else is asked for
    save: bool = False  # keep the rows in --results, and draw the image there
    results: Path = RESULTS  # folder of the file of rows and of the image


QUICK = {
    "models": ("autoformer_tiny", "prenas_tiny_6m", "deit_tiny_patch16_224"),
    "rounds": 5,
    "seconds": 10.0,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print; 2 with one line on stderr where the input is wrong."""
    return run_command(PROGRAM, ParetoOptions, argv, _work)


def _work(options: ParetoOptions) -> tuple[str, dict[str, Any]]:
    rows = measure_pareto(options)
    if options.save:
        save_rows(options.results / ROWS, rows)
    document = {
        "what": "pareto",
        "accuracy": "published, not measured here",
        "rows": [asdict(row) for row in rows],
    }
    return format_table(rows), document


def published_top1() -> Mapping[str, float]:
    """Return published ImageNet top-1 in percent by model, without tags."""
    zoo = {name.partition(".")[0]: each.top1_percent for name, each in PUBLISHED.items()}
    return {**zoo, **DEIT_TOP1}


def measure_pareto(options: ParetoOptions) -> list[Row]:
    """Time the models.

    Returns:
        For each model and batch size a row of latency and one of the published accuracy.

    Raises:
        ValueError: an option is out of its range, or a model has no published accuracy.
    """
    options = shortened(options, QUICK) if options.quick else options
    top1 = published_top1()
    unknown = [model for model in options.models if model not in top1]
    if unknown:
        raise ValueError(
            f"no published accuracy of {', '.join(unknown)}; there are those of {', '.join(top1)}"
        )
    latency = LatencyOptions(
        models=options.models or tuple(top1),
        batch_size=options.batch_size,
        threads=(options.threads,),
        device=options.device,
        backend=(options.backend,),
        precision=(options.precision,),
        rounds=options.rounds,
        seconds=options.seconds,
    )
    times = [row for rows, _ in measure_groups(latency) for row in rows if row.what == "latency"]
    note = "published by the authors, not measured here"
    return [
        each
        for row in times
        for each in (
            row,
            restated(row, "top1_published", (top1[row.model],) * 3, "%", repeats=0, note=note),
        )
    ]


def format_table(rows: Sequence[Row]) -> str:
    """Return the models, fastest first, as lines of text."""
    pairs = sorted(zip(rows[::2], rows[1::2], strict=True), key=lambda pair: pair[0].median)
    lines = [f"{'model':<26} {'batch':>5} {'median ms':>10}  ImageNet top-1 %, published"]
    lines += [
        f"{time.model:<26} {time.batch:>5} {time.median:>10.2f}  {accuracy.median:.1f}"
        for time, accuracy in pairs
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
