"""The table that `latency.py` prints: one line for each model and setting, ratios below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.rows import RatioRow, Row

FIGURES = {  # heading, width, digits after the point; of rows whose `what` is the key
    "throughput": ("pictures/s", 11, 1),
    "macs": ("GMACs", 7, 2),
    "flops": ("GFLOP/s", 9, 1),
    "share_of_peak": ("% of peak", 10, 1),
    "peak_memory": ("peak MiB", 9, 0),
}


def format_table(rows: Sequence[Row], ratios: Sequence[RatioRow]) -> str:
    """Return the rows, one line a model and setting, and the ratios below, as lines of text."""
    heading = (
        f"{'model':<34} {'backend':<11} {'precision':<9} {'input':<9} {'batch':>5} {'threads':>7} "
        f"{'median ms':>10} {'p10':>9} {'p90':>9}"
    )
    heading += "".join(f"{title:>{width}}" for title, width, _ in FIGURES.values())
    by_line: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in rows:
        by_line.setdefault(row.key[1:], {})[row.what] = row
    lines = [_line(line) for line in by_line.values() if "latency" in line]
    lines += [f"{r.model:<34} {r.precision:<9} {r.median:.0f} {r.unit}" for r in peaks(rows)]
    text = [heading, *lines]
    if ratios:
        text += ["", "ratio of medians, with a bootstrap interval of 95 %"]
        text += [_ratio_line(ratio) for ratio in ratios]
    return "\n".join(text)


def peaks(rows: Sequence[Row]) -> list[Row]:
    """Return the machine's peaks among the rows, the fastest for each precision."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row.what == "peak":
            known = found.setdefault((row.machine, row.precision), row)
            found[row.machine, row.precision] = max(known, row, key=lambda each: each.median)
    return list(found.values())


def _line(figures: Mapping[str, Row]) -> str:
    row = figures["latency"]
    text = (
        f"{row.model:<34} {row.backend:<11} {row.precision:<9} {row.input:<9} {row.batch:>5} "
        f"{row.threads:>7} {row.median:>10.2f} {row.p10:>9.2f} {row.p90:>9.2f}"
    )
    for what, (_, width, digits) in FIGURES.items():
        value = f"{figures[what].median:.{digits}f}" if what in figures else "-"
        text += f"{value:>{width}}"
    return text


def _ratio_line(ratio: RatioRow) -> str:
    return (
        f"{ratio.model:<26} / {ratio.baseline:<30} {ratio.backend:<11} {ratio.precision:<5} "
        f"batch {ratio.batch:<4} threads {ratio.threads:<3} "
        f"{ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    )
