"""Tables in Markdown from rows: what stands between the markers of README and docs.

Each table says below itself on which machine, when and with which versions its figures were
measured, from the rows. Several machines make several tables. Nothing here reads files but through
`results.py`; `report.py` puts the tables where they belong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from benchmarks import accuracy, attention, latency, operators, pareto, startup, train_step
from benchmarks.measure.results import read_rows
from benchmarks.measure.rows import RatioRow, Row

NOT_MEASURED = "Not measured yet on such a device."
FORMS = ("plain", "explicit", "decomposed", "augmented")
STAGES = {  # of startup: heading of a column by what the row says
    "import_torch": "import torch",
    "import_timm": "import timm",
    "import_autoformer_zoo": "import autoformer_zoo",
    "load_supernet": "load_supernet",
    "extract_subnet": "extract_subnet",
    "create_model": "create_model",
    "first_prediction": "first prediction",
    "later_prediction": "a later one",
    "total": "in all, to the first",
}

AnyRow = TypeVar("AnyRow", Row, RatioRow)
Figures = Mapping[str, Row]  # rows of one line, by what they say


def make_table(name: str, results: Path) -> str:
    """Return the table of a name in `TABLES`, from the files in a folder.

    Raises:
        ValueError: there is no such table, or a file is refused.
    """
    if name not in TABLES:
        raise ValueError(f"no table {name!r}; expected one of {', '.join(TABLES)}")
    return TABLES[name](results)


def _latency(results: Path, device: str) -> str:
    rows = _on(device, read_rows(results / latency.ROWS, Row))
    header = (
        *("model", "backend", "precision", "input", "batch", "ms, median (p10 to p90)"),
        *("images/s", "GMACs", "% of peak", "peak MiB"),
    )

    def cells(figures: Figures) -> list[str]:
        row = figures["latency"]
        return [
            *(f"`{row.model}`", row.backend, row.precision, row.input, str(row.batch)),
            f"{_short(row.median)} ({_short(row.p10)} to {_short(row.p90)})",
            *(_of(figures, what) for what in ("throughput", "macs", "share_of_peak")),
            _of(figures, "peak_memory"),
        ]

    return _by_machine(rows, header, _lines_with("latency", cells))


def _onnx(results: Path, device: str) -> str:
    ratios = {
        (row.model, row.precision, row.batch, row.threads, row.input, row.machine): row
        for row in read_rows(results / latency.RATIOS, RatioRow)
        if row.backend == "onnxruntime" and row.device == device
    }
    rows = _on(device, read_rows(results / latency.ROWS, Row))
    header = (
        "model",
        "precision",
        "batch",
        "ms, median",
        "images/s",
        "peak MiB",
        "time / DeiT's",
    )

    def cells(figures: Figures) -> list[str]:
        row = figures["latency"]
        ratio = ratios.get(
            (row.model, row.precision, row.batch, row.threads, row.input, row.machine)
        )
        return [
            *(f"`{row.model}`", row.precision, str(row.batch), _short(row.median)),
            *(_of(figures, "throughput"), _of(figures, "peak_memory")),
            _interval(ratio) if ratio else "",
        ]

    chosen = [row for row in rows if row.backend == "onnxruntime"]
    return _by_machine(chosen, header, _lines_with("latency", cells))


def _ratios(results: Path, device: str) -> str:
    header = ("time of", "over", "backend", "precision", "input", "batch", "ratio (95 % interval)")

    def lines(rows: Sequence[RatioRow]) -> list[list[str]]:
        return [
            [
                *(f"`{row.model}`", f"`{row.baseline}`", row.backend, row.precision, row.input),
                *(str(row.batch), _interval(row)),
            ]
            for row in rows
        ]

    rows = _on(device, read_rows(results / latency.RATIOS, RatioRow))
    return _by_machine(rows, header, lines)


def _attention(results: Path, device: str) -> str:
    rows = _on(device, read_rows(results / attention.ROWS, Row))
    header = ("input", *(f"{form}, ms" for form in FORMS), *(f"{form}, MiB" for form in FORMS))

    def lines(rows: Sequence[Row]) -> list[list[str]]:
        by_input: dict[str, dict[tuple[str, str], Row]] = {}
        for row in rows:
            by_input.setdefault(row.input, {})[row.what, row.model] = row
        return [
            [
                name,
                *(_attention_cell(found.get(("latency", form))) for form in FORMS),
                *(_attention_cell(found.get(("peak_memory", form))) for form in FORMS),
            ]
            for name, found in by_input.items()
        ]

    return _by_machine(rows, header, lines)


def _attention_cell(row: Row | None) -> str:
    if row is None:
        return ""
    return _short(row.median) if row.repeats else f"({_short(row.median)})"  # estimated


def _startup(results: Path) -> str:
    rows = read_rows(results / startup.ROWS, Row)
    stages = {what: title for what, title in STAGES.items() if what in {row.what for row in rows}}
    header = ("ms", "bytecode", *stages.values())

    def cells(figures: Figures) -> list[str]:
        row = figures["total"]
        return [f"`{row.model}`", row.input, *(_of(figures, what) for what in stages)]

    return _by_machine(rows, header, _lines_with("total", cells))


def _accuracy(results: Path, part_of_name: str) -> str:
    rows = read_rows(results / accuracy.ROWS, Row)
    header = ("model", "backend", "precision", "data", "images", "top-1 %", "top-5 %", "ReaL %")

    def cells(figures: Figures) -> list[str]:
        row = figures["top1"]
        return [
            *(f"`{row.model}`", row.backend, row.precision, row.input, str(row.repeats)),
            *(_of(figures, what, ".2f") for what in ("top1", "top5", "real_top1")),
        ]

    chosen = [row for row in rows if part_of_name in row.model]
    return _by_machine(chosen, header, _lines_with("top1", cells))


def _pareto(results: Path, device: str) -> str:
    rows = _on(device, read_rows(results / pareto.ROWS, Row))
    header = ("model", "batch", "ms, median", "ImageNet top-1 %, published, not measured here")

    def cells(figures: Figures) -> list[str]:
        row = figures["latency"]
        return [
            *(f"`{row.model}`", str(row.batch), _short(row.median)),
            _of(figures, "top1_published", ".1f"),
        ]

    times = {row.key[1:]: row.median for row in rows if row.what == "latency"}
    rows.sort(key=lambda row: times.get(row.key[1:], 0.0))
    return _by_machine(rows, header, _lines_with("latency", cells))


def _operators(results: Path, device: str) -> str:
    rows = _on(device, read_rows(results / operators.ROWS, Row))
    models = list(dict.fromkeys(row.model for row in rows))
    header = ("input", "batch", "ms of", *(f"`{model}`" for model in models))

    def lines(rows: Sequence[Row]) -> list[list[str]]:
        groups: dict[tuple[str, int], list[Row]] = {}
        for row in rows:
            groups.setdefault((row.input, row.batch), []).append(row)
        return [
            [input, str(batch), name, *(_short(value) if value else "" for value in values)]
            for (input, batch), group in groups.items()
            for name, values in operators.side_by_side(group, models).items()
        ]

    return _by_machine(rows, header, lines)


def _training(results: Path, device: str) -> str:
    ratios: dict[tuple[object, ...], list[RatioRow]] = {}
    for ratio in read_rows(results / train_step.RATIOS, RatioRow):
        ratios.setdefault((ratio.what, *_place(ratio)), []).append(ratio)
    rows = _on(device, read_rows(results / train_step.ROWS, Row))
    found = {(row.what, *_place(row)): row for row in rows}
    header = (
        *("time of a", "space", "input", "way", "precision", "batch", "ms, median (p10 to p90)"),
        *("a second", "peak MiB", "time over (95 % interval)"),
    )

    def lines(rows: Sequence[Row]) -> list[list[str]]:
        return [
            [
                *(row.what, row.model, row.input, row.backend, row.precision, str(row.batch)),
                f"{_short(row.median)} ({_short(row.p10)} to {_short(row.p90)})",
                f"{_short(speed.median)} {speed.unit.partition('/')[0]}",
                _short(memory.median)
                if (memory := found.get(("peak_memory", *_place(row))))
                else "",
                "; ".join(
                    f"{each.baseline}: {_interval(each)}"
                    for each in ratios.get((row.what, *_place(row)), ())
                ),
            ]
            for row in rows
            if (speed := found.get(("throughput", *_place(row)))) and row.unit == "ms"
        ]

    return _by_machine(rows, header, lines)


def _place(row: Row | RatioRow) -> tuple[object, ...]:
    """Return what the figures of one competitor have in common."""
    setting = (row.backend, row.precision, row.batch, row.threads, row.input)
    return (row.model, *setting, row.device, row.machine)


TABLES: Mapping[str, Callable[[Path], str]] = MappingProxyType(
    {
        "latency-cpu": partial(_latency, device="cpu"),
        "latency-cuda": partial(_latency, device="cuda"),
        "ratios-cpu": partial(_ratios, device="cpu"),
        "ratios-cuda": partial(_ratios, device="cuda"),
        "onnx-cpu": partial(_onnx, device="cpu"),
        "attention-cpu": partial(_attention, device="cpu"),
        "attention-cuda": partial(_attention, device="cuda"),
        "operators-cpu": partial(_operators, device="cpu"),
        "startup": _startup,
        "training-cpu": partial(_training, device="cpu"),
        "training-cuda": partial(_training, device="cuda"),
        "accuracy": partial(_accuracy, part_of_name=""),
        "accuracy-nano": partial(_accuracy, part_of_name="nano"),
        "pareto-cpu": partial(_pareto, device="cpu"),
        "pareto-cuda": partial(_pareto, device="cuda"),
    }
)
"""Names that may stand in a marker, and what makes each table."""


def _on(device: str, rows: Iterable[AnyRow]) -> list[AnyRow]:
    return [row for row in rows if row.device == device]


def _by_machine(
    rows: Sequence[AnyRow],
    header: Sequence[str],
    lines: Callable[[Sequence[AnyRow]], Sequence[Sequence[str]]],
) -> str:
    """Return a table for each machine with its caption, in the order of the rows."""
    parts = []
    for machine in dict.fromkeys(row.machine for row in rows):
        there = [row for row in rows if row.machine == machine]
        parts += [_markdown(header, lines(there)), caption(there)]
    return "\n\n".join(parts) or NOT_MEASURED


def _lines_with(
    needed: str, cells: Callable[[Figures], list[str]]
) -> Callable[[Sequence[Row]], list[list[str]]]:
    """Return what makes a line of each group of rows that has a figure `needed`."""

    def lines(rows: Sequence[Row]) -> list[list[str]]:
        groups: dict[tuple[object, ...], dict[str, Row]] = {}
        for row in rows:
            groups.setdefault(row.key[1:], {})[row.what] = row
        return [cells(figures) for figures in groups.values() if needed in figures]

    return lines


def caption(rows: Sequence[Row] | Sequence[RatioRow]) -> str:
    """Say where, when and with what rows were measured."""
    days = sorted({row.date[:10] for row in rows})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    machine = ", ".join(dict.fromkeys(row.machine for row in rows))
    threads = " or ".join(str(n) for n in sorted({row.threads for row in rows}))
    versions = "; or ".join(dict.fromkeys(row.versions for row in rows))
    commits = ", ".join(dict.fromkeys(row.commit for row in rows))
    return f"{machine}, {threads} threads; {when}; {versions}; commit {commits}."


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(cell or '-' for cell in row)} |" for row in rows)


def _of(figures: Figures, what: str, style: str = "") -> str:
    if what not in figures:
        return ""
    value = figures[what].median
    return f"{value:{style}}" if style else _short(value)


def _short(value: float) -> str:
    """Return three significant digits, and all digits before the point."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _interval(row: RatioRow) -> str:
    return f"{row.ratio:.2f} ({row.low:.2f} to {row.high:.2f})"
