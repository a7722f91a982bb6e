"""What all benchmark commands share: options, checks, and one way to run and report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from autoformer_zoo.cli.command import run_command
from benchmarks.measure.results import RESULTS, save_rows, to_columns
from benchmarks.measure.rows import Row
from benchmarks.measure.text_table import format_table


@dataclass(frozen=True, slots=True)
class BenchmarkOptions:
    """Options of every benchmark."""

    save: bool = False  # keep the rows in --results
    results: Path = RESULTS  # folder of the files of rows
    file: str = ""  # name of the file of rows in that folder; empty: the benchmark's


Options = TypeVar("Options", bound=BenchmarkOptions)


def run_benchmark(
    name: str,
    options_type: type[Options],
    argv: Sequence[str] | None,
    measure: Callable[[Options], Iterable[Sequence[Row]]],
    *,
    format_rows: Callable[[Sequence[Row]], str] = format_table,
    file: str | None = None,
    quick: Mapping[str, Any] | None = None,
) -> int:
    """Parse the arguments, measure, print a table and, as the last line, a JSON document.

    Args:
        name: of the command's module in `benchmarks`.
        options_type: its fields become flags.
        argv: arguments without the program's name; None takes those of the process.
        measure: yields rows group by group. Each group is saved when it is complete, so that an
            interrupted run keeps what it has measured.
        format_rows: returns the table of figures; a table of ratios is added.
        file: rows are saved in FILE.csv and FILE_ratios.csv; the command's name by default.
        quick: the defaults under `--quick`.

    Returns:
        0; 2 for wrong input, with one line on stderr.
    """

    def run(options: Options) -> None:
        if quick is not None and getattr(options, "quick", False):
            options = apply_quick(options, quick)
        rows: list[Row] = []
        for group in measure(options):
            if options.save:
                save_rows(options.results, options.file or file or name, group)
            rows += group
        figures = [row for row in rows if not row.baseline]
        ratios = [row for row in rows if row.baseline]
        print(format_rows(figures), *([format_table(ratios)] if ratios else []), sep="\n\n")
        print_document(name, rows=figures, ratios=ratios)

    return run_command(f"python -m benchmarks.{name}", options_type, argv, run)


def print_document(
    what: str, rows: Sequence[Row], ratios: Sequence[Row] = (), **facts: Any
) -> None:
    """Print rows as one line of JSON, with the column names of the files."""
    document = {"rows": map(to_columns, rows), "ratios": map(to_columns, ratios)}
    print(json.dumps({"what": what, **{k: list(v) for k, v in document.items()}, **facts}))


def apply_quick(options: Options, quick: Mapping[str, Any]) -> Options:
    """Replace those options that still have their defaults by the values of `quick`."""
    default = type(options)()
    changed = {
        f.name for f in fields(options) if getattr(options, f.name) != getattr(default, f.name)
    }
    return replace(options, **{key: value for key, value in quick.items() if key not in changed})


def check_positive(options: Any, *names: str) -> None:
    """Check that options, or all numbers of them, are positive.

    Raises:
        ValueError: one is not, or an option that takes several numbers has none.
    """
    for name in names:
        value = getattr(options, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers:
            raise ValueError(f"{name} is empty; expected at least one")
        if min(numbers) <= 0:
            raise ValueError(f"{name} is {value}; expected positive numbers")
