"""Tables and images from the files of rows, put where README and docs want them.

    python -m benchmarks.report            # fill tables, draw images
    python -m benchmarks.report --check    # exit code 1 where one is stale; changes nothing

A table stands between two lines in README.md or docs/*.md, and whatever is between them is
replaced:

    <!-- benchmarks: latency-cpu -->
    <!-- end -->

The names are those of `tables.TABLES`. Images are results/NAME.svg, names in `plots.PLOTS`; a
image without rows is not drawn.
"""

from __future__ import annotations

import os
import re
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure.options import run_command
from benchmarks.measure.results import RESULTS
from benchmarks.report.plots import PLOTS, draw_plot, is_stale, rows_of_plot
from benchmarks.report.tables import make_table

PROGRAM = "python -m benchmarks.report"
START = re.compile(r"<!-- benchmarks: (.*?) -->\n")
END = "<!-- end -->"


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """Fill the tables of README.md and docs/*.md, and draw the images."""

    check: bool = False  # change nothing; exit code 1 where something is stale
    root: Path = RESULTS.parent.parent  # folder of README.md and docs/
    results: Path = RESULTS  # folder of the files of rows and of the images


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, fill or check, print; 2 with one line on stderr where a marker is wrong."""
    return run_command(PROGRAM, ReportOptions, argv, _work)


def _work(options: ReportOptions) -> tuple[str, dict[str, Any]]:
    changed = report(options)
    verb = "stale" if options.check else "written"
    lines = [f"{verb}: {name}" for name in changed] or ["all tables and images are up to date"]
    code = int(options.check and bool(changed))
    return "\n".join(lines), {"what": "report", verb: changed, "exit_code": code}


def report(options: ReportOptions) -> list[str]:
    """Fill all tables and draw all images, or only find the stale ones.

    Returns:
        What was, or would be, changed: "README.md: latency-cpu", "pareto-cpu.svg".

    Raises:
        ValueError: a marker names no table or has no end, or a file of rows is refused.
    """
    changed = []
    pages = [options.root / "README.md", *sorted((options.root / "docs").glob("*.md"))]
    for page in pages:
        if not page.exists():
            continue
        text = page.read_text(encoding="utf-8")
        filled, names = fill_tables(text, options.results, page.name)
        changed += [f"{page.relative_to(options.root)}: {name}" for name in names]
        if names and not options.check:
            _write(page, filled)
    for name in PLOTS:
        rows, out = rows_of_plot(name, options.results), options.results / f"{name}.svg"
        if rows and is_stale(rows, out):
            changed.append(out.name)
            if not options.check:
                draw_plot(name, rows, out)
    return changed


def fill_tables(text: str, results: Path, page: str) -> tuple[str, list[str]]:
    """Return a page with its tables made anew, and the names of those that differ.

    Args:
        text: of the page.
        results: folder of the files of rows.
        page: its name, for errors.

    Raises:
        ValueError: a marker names no table, or has no end before the next one.
    """
    parts, stale, position = [], [], 0
    while start := START.search(text, position):
        following = START.search(text, start.end())
        end = text.find(END, start.end(), following.start() if following else len(text))
        if end < 0:
            raise ValueError(f"{page}: the marker of {start[1]} has no {END!r} after it")
        try:
            table = f"{make_table(start[1], results)}\n"
        except ValueError as error:
            raise ValueError(f"{page}: {error}") from None
        if text[start.end() : end] != table:
            stale.append(start[1])
        parts += [text[position : start.end()], table]
        position = end
    return "".join([*parts, text[position:]]), stale


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
