"""Rows as lines of text for the terminal, aligned in columns."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measure.rows import Row

FIELDS = ("model", "baseline", "backend", "precision", "input", "batch", "threads", "note")


def format_table(rows: Sequence[Row]) -> str:
    """Return one line for each competitor, with all its figures, in the order of the rows."""
    groups: dict[tuple[str | int, ...], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(row.key[1:], {})[row.what] = row
    names = [name for name in FIELDS if any(getattr(row, name) != "" for row in rows)]
    headings = {row.what: f"{row.what}, {row.unit or 'ratio'}" for row in rows}
    lines = [
        [
            *(str(getattr(next(iter(figures.values())), name)) for name in names),
            *(_figure(figures[what]) if what in figures else "-" for what in headings),
        ]
        for figures in groups.values()
    ]
    return align([[*names, *headings.values()], *lines])


def align(lines: Sequence[Sequence[str]]) -> str:
    """Return cells as text, the first column on the left, all others on the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _figure(row: Row) -> str:
    has_range = row.low != row.high
    return f"{row.value:.4g}" + (f" ({row.low:.3g} to {row.high:.3g})" if has_range else "")
