"""How many evaluations a search of a released supernet needs, by method.

    python -m benchmarks.search --save
    python -m benchmarks.search --tables tiny.json small.json base.json --save

Every method looks for the most accurate subnet under the paper's limit on parameters. There are two
landscapes. `model`: the accuracy predictor of the space, and every evaluation adds what it does not
explain, drawn anew for each seed; regret is counted without it. `table`: subnets whose accuracy was
measured (`--tables`, the files that `training.fit_predictor` takes); only those can be asked for,
so a method is answered with the nearest one that it has not had. Nothing is trained or run.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autoformer_zoo.published import MODELS, SPACES
from autoformer_zoo.specialization.constraints import Constraint, Feasible, params_cost
from autoformer_zoo.specialization.predictor import load_predictor
from autoformer_zoo.specialization.search import find_best
from benchmarks.measure.options import BenchmarkOptions, check_positive, run_benchmark
from benchmarks.measure.rows import Environment, Row, Setting, current_environment, make_row
from benchmarks.measure.text_table import align
from benchmarks.search import NAME
from benchmarks.search.landscapes import (
    LIMITS,
    EnoughError,
    Landscape,
    ModelLandscape,
    TableLandscape,
)
from benchmarks.search.methods import METHODS, Run

COUNTS = (50, 100, 200, 400, 700, 1000)  # evaluations at which regret is written down


@dataclass(frozen=True, slots=True)
class SearchOptions(BenchmarkOptions):
    """Compare methods of search on the accuracies of released supernets."""

    spaces: tuple[str, ...] = tuple(LIMITS)  # of the accuracy predictor
    tables: tuple[Path, ...] = ()  # files of measured subnets
    seeds: int = 30  # runs of each method
    evaluations: int = COUNTS[-1]  # of one run; the paper's search has 1,000
    quick: bool = False  # by default few runs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_benchmark(
        NAME,
        SearchOptions,
        argv,
        compare_methods,
        format_rows=format_rows,
        quick={"seeds": 2, "evaluations": 100},
    )


def compare_methods(options: SearchOptions) -> Iterator[list[Row]]:
    """Run all methods on all landscapes.

    Yields:
        For each landscape the regrets in points of top-1, median and range of 80 % of the seeds, by
        method and number of evaluations (`batch`); for each space the best predicted subnet with no
        more parameters than the published one, and the published one, with 90 % intervals.

    Raises:
        ValueError: an option is out of range, or a space or table cannot be used.
    """
    check_positive(options, "seeds", "evaluations")
    if unknown := sorted(set(options.spaces) - set(LIMITS)):
        raise ValueError(f"space {unknown[0]!r} has no limit; expected {', '.join(LIMITS)}")
    environment = current_environment("cpu")
    tables = (TableLandscape(path) for path in options.tables)
    for landscape in (*map(ModelLandscape, options.spaces), *tables):
        yield [
            row
            for name, method in METHODS.items()
            for row in regret_rows(name, method, landscape, options, environment)
        ]
    for space in options.spaces:
        yield published_rows(space, environment)


def regret_rows(
    name: str,
    method: Callable[[Run], None],
    landscape: Landscape,
    options: SearchOptions,
    environment: Environment,
) -> list[Row]:
    """Run a method with all seeds; returns a row for each number of evaluations."""
    runs = []
    for seed in range(options.seeds):
        run = Run(landscape, seed, options.evaluations)
        with contextlib.suppress(EnoughError):
            method(run)
        runs.append(run.regrets)
    rows = []
    for count in [c for c in COUNTS if c <= min(map(len, runs))]:
        low, median, high = np.quantile([regrets[count - 1] for regrets in runs], [0.1, 0.5, 0.9])
        setting = Setting("", count, 1, name, "", f"{landscape.name}, {landscape.kind}")
        row = make_row("regret", float(median), "points", setting, environment, options.seeds)
        rows.append(replace(row, low=float(low), high=float(high)))
    return rows


def published_rows(name: str, environment: Environment) -> list[Row]:
    """Compare the best predicted subnet of the published one's size with the published one."""
    predictor, space = load_predictor(name), SPACES[name]
    published = MODELS[f"autoformer_{name}"].subnet
    cost = params_cost(space)
    feasible = Feasible(space, [Constraint(cost, high=cost.value(published))])
    (found,) = find_best(feasible, lambda x: predictor.predict(x).tolist())
    rows = []
    subnets = {f"autoformer_{name}": published, f"best of {name} at its size": found.subnet}
    for model, subnet in subnets.items():
        (top1,) = predictor.intervals([subnet])
        setting = Setting("", 1, 1, model, "", name)
        note = f"{subnet.to_json()}{', extrapolated' if top1.extrapolated else ''}"
        row = make_row("predicted_top1", top1.value, "%", setting, environment, note=note)
        rows.append(replace(row, low=top1.low, high=top1.high))
        setting = replace(setting, model=model)
        rows.append(make_row("params", cost.value(subnet), "parameters", setting, environment))
    return rows


def format_rows(rows: Sequence[Row]) -> str:
    """Return regrets by method and number of evaluations, then predictions."""
    regrets = [row for row in rows if row.what == "regret"]
    counts = sorted({row.batch for row in regrets})
    cells = {(row.input, row.model, row.batch): row for row in regrets}
    lines = [["regret, points", "method", *(f"{count}" for count in counts)]]
    for landscape, method in dict.fromkeys((row.input, row.model) for row in regrets):
        found = [cells.get((landscape, method, count)) for count in counts]
        shown = [f"{r.value:.3f} ({r.low:.3f} to {r.high:.3f})" if r else "-" for r in found]
        lines.append([landscape, method, *shown])
    others = [
        f"{row.model}: {row.value:.2f} ({row.low:.2f} to {row.high:.2f}) {row.unit} predicted"
        for row in rows
        if row.what == "predicted_top1"
    ]
    return "\n".join([align(lines), *others])


if __name__ == "__main__":
    sys.exit(main())
