"""Where the time goes: each operator's own time in a call of a model, side by side with another.

    python -m benchmarks.footprint.operators --save
    python -m benchmarks.footprint.operators --models autoformer_small --batch-size 8

torch's profiler adds about a microsecond to each operator, so the calls take longer than those of
`latency.py`, by more the more operators there are. Time outside of operators is Python's and the
profiler's own.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.profiler import ProfilerActivity, profile

from autoformer_zoo.specialization.latency.timing import (
    Call,
    collection_off,
    thread_count,
    wall_stopwatch,
)
from benchmarks.measure.models import build, make_call
from benchmarks.measure.options import BenchmarkOptions, check_positive, run_benchmark
from benchmarks.measure.rows import Row, Setting, current_environment, latency_row
from benchmarks.measure.text_table import align
from benchmarks.measure.timing import orders

NAME = "footprint.operators"
FILE = "operators"
CALL, OTHERS, BETWEEN = "the whole call", "other operators", "between operators"
MIN_SHARE = 0.01  # of the call: operators with less in every model are added up
WARMUP = 3

Times = Mapping[str, Sequence[float]]  # ms by operator, one a round


@dataclass(frozen=True, slots=True)
class OperatorOptions(BenchmarkOptions):
    """Profile models in eager mode on the CPU, in fp32."""

    models: tuple[str, ...] = ("autoformer_tiny", "deit_tiny_patch16_224")  # as benchmarks.latency
    batch_size: int = 1  # images a call
    threads: int = 2  # threads of torch
    rounds: int = 40  # profiled calls of each model
    quick: bool = False  # by default few rounds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_benchmark(
        NAME,
        OperatorOptions,
        argv,
        measure_operators,
        format_rows=format_rows,
        file=FILE,
        quick={"rounds": 5},
    )


def measure_operators(options: OperatorOptions) -> Iterator[list[Row]]:
    """Profile all models in interleaved rounds.

    Yields:
        For each model a row an operator, most time first: ms of one call, without what it calls.

    Raises:
        ValueError: an option is out of range, or a model is unknown.
    """
    check_positive(options, "batch_size", "threads", "rounds")
    setting = Setting("fp32", options.batch_size, options.threads)
    models = {spec: build(spec) for spec in options.models}
    rounds: dict[str, list[dict[str, float]]] = {spec: [] for spec in models}
    with thread_count(options.threads), torch.inference_mode(), collection_off():
        calls = {
            spec: make_call(model, "eager", setting, "cpu", options.results)
            for spec, model in models.items()
        }
        for call in calls.values():
            for _ in range(WARMUP):
                profile_call(call)
        for order in orders(list(calls), options.rounds):
            for spec in order:
                calls[spec]()
                rounds[spec].append(profile_call(calls[spec]))
    environment = current_environment("cpu")
    for spec, times in merge_small({s: by_operator(r) for s, r in rounds.items()}).items():
        profiled = replace(setting, model=spec, input=models[spec].input)
        rows = [latency_row(name, ms, profiled, environment) for name, ms in times.items()]
        yield sorted(rows, key=lambda row: -row.value)


def profile_call(call: Call) -> dict[str, float]:
    """Return ms by operator of one call, and those of the whole call and between operators."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        whole = wall_stopwatch()(call)
    own = {event.key: event.self_cpu_time_total / 1e3 for event in record.key_averages()}
    return {CALL: whole, BETWEEN: whole - sum(own.values()), **own}


def by_operator(rounds: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Turn operators by round into rounds by operator; 0 for operators that a round lacks."""
    names = dict.fromkeys(name for times in rounds for name in times)
    return {name: [times.get(name, 0.0) for times in rounds] for name in names}


def merge_small(by_model: Mapping[str, Times]) -> dict[str, dict[str, list[float]]]:
    """Add up, round by round, the operators with a small share of the call in every model."""
    large = {
        name
        for times in by_model.values()
        for name, values in times.items()
        if statistics.median(values) >= MIN_SHARE * statistics.median(times[CALL])
    } | {CALL, BETWEEN}
    merged = {}
    for model, times in by_model.items():
        small = [values for name, values in times.items() if name not in large]
        merged[model] = {name: list(values) for name, values in times.items() if name in large}
        if small:
            merged[model][OTHERS] = [sum(values) for values in zip(*small, strict=True)]
    return merged


def format_rows(rows: Sequence[Row]) -> str:
    """Return the ms of each operator, models side by side, most time first."""
    models = list(dict.fromkeys(row.model for row in rows))
    by_name: dict[str, dict[str, float]] = {}
    for row in rows:
        by_name.setdefault(row.what, {})[row.model] = row.value
    names = sorted(by_name, key=lambda name: -max(by_name[name].values()))
    lines = [[name, *(f"{by_name[name].get(model, 0):.3f}" for model in models)] for name in names]
    return align([["ms", *models], *lines])


if __name__ == "__main__":
    sys.exit(main())
