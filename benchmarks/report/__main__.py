"""Tables and plots from the files of rows, put into README and docs.

    python -m benchmarks.report            # fill tables, draw plots
    python -m benchmarks.report --check    # exit code 1 if one is stale; changes nothing

A table is written between two lines of README.md or docs/*.md, and replaces what is there:

    <!-- benchmarks: latency-cpu -->
    <!-- end -->

The names are those of `tables.TABLES`. Plots are results/NAME.svg, with the names of `plots.PLOTS`;
a plot without rows is not drawn.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoformer_zoo.cli.command import run_command
from autoformer_zoo.weights.whole_files import complete_file
from benchmarks.measure.results import RESULTS
from benchmarks.report.plots import PLOTS, draw_plot, is_stale, rows_of_plot
from benchmarks.report.tables import make_table

MARKER = r"<!-- benchmarks: (\S+) -->\n"
BLOCK = re.compile(rf"{MARKER}((?:(?!<!-- benchmarks: ).)*?)<!-- end -->", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """Fill the tables of README.md and docs/*.md, and draw the plots."""

    check: bool = False  # change nothing; exit code 1 if something is stale
    root: Path = RESULTS.parent.parent  # folder of README.md and docs/
    results: Path = RESULTS  # folder of the files of rows and of the plots


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 2 if a marker is wrong."""
    return run_command("python -m benchmarks.report", ReportOptions, argv, _run)


def _run(options: ReportOptions) -> int:
    changed = report(options)
    verb = "stale" if options.check else "written"
    for name in changed:
        print(f"{verb}: {name}")
    if not changed:
        print("all tables and plots are up to date")
    print(json.dumps({"what": "report", verb: changed}))
    return int(options.check and bool(changed))


def report(options: ReportOptions) -> list[str]:
    """Fill all tables and draw all plots, or only find the stale ones.

    Returns:
        What was, or would be, changed: "README.md: latency-cpu", "pareto-cpu.svg".

    Raises:
        ValueError: a marker names no table or has no end, or a file of rows is refused.
    """
    changed = []
    pages = [options.root / "README.md", *sorted((options.root / "docs").glob("*.md"))]
    for page in filter(Path.exists, pages):
        text = page.read_text(encoding="utf-8")
        filled, names = fill_tables(text, options.results, page.name)
        changed += [f"{page.relative_to(options.root)}: {name}" for name in names]
        if names and not options.check:
            with complete_file(page) as temporary:
                temporary.write_text(filled, encoding="utf-8")
    for name in PLOTS:
        rows, out = rows_of_plot(name, options.results), options.results / f"{name}.svg"
        if rows and is_stale(rows, out):
            changed.append(out.name)
            if not options.check:
                draw_plot(name, rows, out)
    return changed


def fill_tables(text: str, results: Path, page: str) -> tuple[str, list[str]]:
    """Return a page with new tables, and the names of those that differ from the old ones.

    Args:
        text: of the page.
        results: folder of the files of rows.
        page: its name, for errors.

    Raises:
        ValueError: a marker names no table, or has no end before the next one.
    """
    stale = []

    def fill(block: re.Match[str]) -> str:
        name, old = block[1], block[2]
        try:
            new = f"{make_table(name, results)}\n"
        except ValueError as error:
            raise ValueError(f"{page}: {error}") from None
        if new != old:
            stale.append(name)
        return f"<!-- benchmarks: {name} -->\n{new}<!-- end -->"

    ends = {block.start() for block in BLOCK.finditer(text)}
    for marker in re.finditer(MARKER, text):
        if marker.start() not in ends:
            raise ValueError(f"{page}: the marker of {marker[1]} has no '<!-- end -->' after it")
    return BLOCK.sub(fill, text), stale


if __name__ == "__main__":
    sys.exit(main())
