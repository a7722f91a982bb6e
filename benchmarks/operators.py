"""Where the time goes: each operator's own time in a call of a model, side by side with another.

    python -m benchmarks.operators --save
    python -m benchmarks.operators --models autoformer_small deit_small_patch16_224 --batch-size 8

torch's profiler times every call, which costs about a microsecond each: the calls are longer than
those of `latency.py`, by the more the more operators there are. What no operator accounts for is
Python and the profiler itself.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure.competitors import OnnxFiles, Track, build, make_run, thread_count
from benchmarks.measure.options import require_positive, run_command, shortened
from benchmarks.measure.results import RESULTS, save_rows
from benchmarks.measure.rows import Row, Setting, current_environment, timed
from benchmarks.measure.timing import collection_off, orders, summarise, wall_stopwatch

PROGRAM = "python -m benchmarks.operators"
ROWS = "operators.csv"
CALL, OTHERS, BETWEEN = "the whole call", "other operators", "between operators"
SMALL = 0.01  # of the call: operators with less in every model are added up
WARMUP = 3

Times = Mapping[str, Sequence[float]]  # ms by operator, one a round


@dataclass(frozen=True, slots=True)
class OperatorOptions:
    """Profile models in eager mode on the CPU, in fp32."""

    models: tuple[str, ...] = ("autoformer_tiny", "deit_tiny_patch16_224")  # as benchmarks.latency
    batch_size: int = 1  # images
    threads: int = 2  # of torch
    rounds: int = 40  # profiled calls of each model
    quick: bool = False  # few rounds, where nothing else is asked for
    save: bool = False  # keep the rows in --results
    results: Path = RESULTS  # folder of the file of rows


QUICK = {"rounds": 5}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print; 2 with one line on stderr where the input is wrong."""
    return run_command(PROGRAM, OperatorOptions, argv, _work)


def _work(options: OperatorOptions) -> tuple[str, dict[str, Any]]:
    rows = measure_operators(options)
    if options.save:
        save_rows(options.results / ROWS, rows)
    return format_table(rows), {"what": "operators", "rows": [asdict(row) for row in rows]}


def measure_operators(options: OperatorOptions) -> list[Row]:
    """Profile all models in interleaved rounds.

    Returns:
        For each model a row an operator, most time first: ms of one call, without what it calls.

    Raises:
        ValueError: an option is out of its range, or a model is unknown.
    """
    options = shortened(options, QUICK) if options.quick else options
    for name in ("batch_size", "threads", "rounds"):
        require_positive(name, [getattr(options, name)])
    setting = Setting("fp32", options.batch_size, options.threads)
    track = Track("cpu", 0, OnnxFiles(options.results))
    competitors = {spec: build(spec) for spec in options.models}
    rounds: dict[str, list[dict[str, float]]] = {spec: [] for spec in competitors}
    with thread_count(options.threads), torch.inference_mode(), collection_off():
        runs = {spec: make_run(each, "eager", setting, track) for spec, each in competitors.items()}
        for run in runs.values():
            for _ in range(WARMUP):
                profiled(run)
        for order in orders(list(runs), options.rounds, 0):
            for spec in order:
                runs[spec]()
                rounds[spec].append(profiled(runs[spec]))
    environment = current_environment("cpu")
    by_model = {spec: by_operator(each) for spec, each in rounds.items()}
    rows = []
    for spec, merged in merge_small(by_model).items():
        place = competitors[spec].input
        summaries = {operator: summarise(values) for operator, values in merged.items()}
        for operator, times in sorted(summaries.items(), key=lambda pair: -pair[1].median_ms):
            rows.append(timed(operator, spec, times, setting, environment, place))
    return rows


def profiled(run: Callable[[], object]) -> dict[str, float]:
    """Return ms by operator of one call, and those of the whole and of what is between."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        whole = wall_stopwatch()(run)
    own = {each.key: each.self_cpu_time_total / 1e3 for each in record.key_averages()}
    return {CALL: whole, BETWEEN: whole - sum(own.values()), **own}


def by_operator(rounds: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Turn operators by round to rounds by operator; 0 where a round has none of it."""
    names = dict.fromkeys(name for each in rounds for name in each)
    return {name: [each.get(name, 0.0) for each in rounds] for name in names}


def merge_small(by_model: Mapping[str, Times]) -> dict[str, dict[str, list[float]]]:
    """Add up, round by round, the operators with a small share of the call in every model."""
    large = {
        name
        for times in by_model.values()
        for name, values in times.items()
        if statistics.median(values) >= SMALL * statistics.median(times[CALL])
    } | {CALL, BETWEEN}
    merged = {}
    for model, times in by_model.items():
        small = [values for name, values in times.items() if name not in large]
        merged[model] = {name: list(values) for name, values in times.items() if name in large}
        if small:
            merged[model][OTHERS] = [sum(values) for values in zip(*small, strict=True)]
    return merged


def format_table(rows: Sequence[Row]) -> str:
    """Return operators and models side by side, as lines of text."""
    models = list(dict.fromkeys(row.model for row in rows))
    figures = side_by_side(rows, models)
    width = max(len(name) for name in figures)
    lines = [f"{'ms':<{width}}" + "".join(f"  {model:>24}" for model in models)]
    for name, values in figures.items():
        lines.append(f"{name:<{width}}" + "".join(f"  {value:>24.3f}" for value in values))
    return "\n".join(lines)


def side_by_side(rows: Sequence[Row], models: Sequence[str]) -> dict[str, list[float]]:
    """Return by operator the ms in each model, 0 where it has none; most time first."""
    found = {(row.what, row.model): row.median for row in rows}
    names = {row.what for row in rows}
    figures = {name: [found.get((name, model), 0.0) for model in models] for name in names}
    return dict(sorted(figures.items(), key=lambda pair: -max(pair[1])))


if __name__ == "__main__":
    sys.exit(main())
