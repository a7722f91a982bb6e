"""Files of rows: `results/NAME.csv` and, for ratios, `results/NAME_ratios.csv`.

A new row replaces the one with the same key (what, model, setting, input, device and machine): a
file holds the newest figure of each, and older ones are in the repository's history.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoformer_zoo.weights.whole_files import complete_file
from benchmarks.measure.rows import Row

RESULTS = Path(__file__).parent.parent / "results"
DIGITS = 5  # significant digits of a figure in a file; whole numbers have all of theirs

# Columns of the two kinds of files. Three fields of a row have other names there.
_SHARED = (
    *("backend", "precision", "batch", "threads", "input"),
    *("device", "machine", "versions", "commit", "date"),
)
FIGURE_COLUMNS = (
    *("what", "model", *_SHARED),
    *("median", "p10", "p90", "repeats", "unit", "note"),
)
RATIO_COLUMNS = ("what", "model", "baseline", *_SHARED, "ratio", "low", "high", "repeats")
_FIELDS = {"median": "value", "p10": "low", "p90": "high", "ratio": "value"}
_TYPES = {"batch": int, "threads": int, "repeats": int, "value": float, "low": float, "high": float}


def save_rows(folder: Path, name: str, rows: Sequence[Row]) -> None:
    """Add rows to NAME.csv and NAME_ratios.csv, replacing older ones with the same key.

    Args:
        folder: made if missing, as are the files.
        name: of the files.
        rows: figures and ratios.

    Raises:
        ValueError: a file has other columns.
    """
    for path, is_ratio in ((folder / f"{name}.csv", False), (folder / f"{name}_ratios.csv", True)):
        chosen = [row for row in rows if bool(row.baseline) == is_ratio]
        if not chosen:
            continue
        merged = {row.key: row for row in (*read_rows(path), *chosen)}
        folder.mkdir(parents=True, exist_ok=True)
        lines = [[_cell(cell) for cell in to_columns(row).values()] for row in merged.values()]
        write_csv(path, RATIO_COLUMNS if is_ratio else FIGURE_COLUMNS, lines)


def to_columns(row: Row) -> dict[str, Any]:
    """Return a row under the names that its file has for the fields."""
    columns = RATIO_COLUMNS if row.baseline else FIGURE_COLUMNS
    return {column: getattr(row, _FIELDS.get(column, column)) for column in columns}


def read_rows(path: Path) -> list[Row]:
    """Read a file of figures or of ratios; a file that does not exist has no rows.

    Raises:
        ValueError: the file has other columns, or a cell is not the number that belongs there.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        found = reader.fieldnames or ()
        columns = RATIO_COLUMNS if "baseline" in found else FIGURE_COLUMNS
        if set(found) != set(columns):
            raise ValueError(
                f"{path}: unknown columns {sorted(set(found) - set(columns))}, missing columns "
                f"{sorted(set(columns) - set(found))}; expected {', '.join(columns)}"
            )
        return [_parsed(f"{path}:{reader.line_num}", cells) for cells in reader]


def write_csv(path: Path, header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Write a table of text; the file appears when it is complete."""
    with complete_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out, lineterminator="\n").writerows([header, *lines])


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value.is_integer() else f"{value:.{DIGITS}g}"


def _parsed(place: str, cells: Mapping[Any, Any]) -> Row:
    if None in cells or None in cells.values():  # csv's marks of a line that is too long or short
        raise ValueError(f"{place}: too many or too few cells")
    values = {_FIELDS.get(column, column): cell for column, cell in cells.items()}
    try:
        return Row(**{field: _TYPES.get(field, str)(cell) for field, cell in values.items()})
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
