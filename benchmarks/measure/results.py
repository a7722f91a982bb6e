"""Files of rows: `results/*.csv`, one for each benchmark.

A new row takes the place of the one with the same key (what, model, setting, input, device and
machine): a file holds the newest figure of each, and its history is the repository's. Files appear
under their names only when they are whole.
"""

from __future__ import annotations

import csv
import os
import uuid
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.measure.rows import RatioRow, Row

RESULTS = Path(__file__).parent / "results"
DIGITS = 5  # significant digits of a figure in a file

AnyRow = TypeVar("AnyRow", Row, RatioRow)


def save_rows(path: Path, rows: Sequence[AnyRow]) -> None:
    """Add rows to a file, each in the place of an older one with the same key.

    Args:
        path: the file; it is made where there is none, its folder too.
        rows: of one type.

    Raises:
        ValueError: the file has other columns.
    """
    if not rows:
        return
    row_type = type(rows[0])
    merged: dict[tuple[object, ...], AnyRow] = {row.key: row for row in read_rows(path, row_type)}
    merged.update({row.key: row for row in rows})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, _columns(row_type), [_cells(row) for row in merged.values()])


def read_rows(path: Path, row_type: type[AnyRow]) -> list[AnyRow]:
    """Read a file of rows; a file that does not exist has none.

    Raises:
        ValueError: the file has other columns, or a cell is no number where one belongs.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        _require_columns(path, next(reader, []), _columns(row_type))
        return [_parsed(path, number, cells, row_type) for number, cells in enumerate(reader, 2)]


def write_csv(path: Path, header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Write a table of text under a temporary name, then give it its own."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *lines])
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _columns(row_type: type[Row] | type[RatioRow]) -> list[str]:
    return [field.name for field in fields(row_type)]


def _cells(row: Row | RatioRow) -> list[str]:
    values = [getattr(row, name) for name in _columns(type(row))]
    return [f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value) for value in values]


def _require_columns(path: Path, found: Sequence[str], expected: Sequence[str]) -> None:
    if list(found) == list(expected):
        return
    unknown = [name for name in found if name not in expected]
    missing = [name for name in expected if name not in found]
    raise ValueError(
        f"{path}: unknown columns {unknown}, missing columns {missing}; expected {list(expected)} "
        "in this order"
    )


def _parsed(path: Path, number: int, cells: Sequence[str], row_type: type[AnyRow]) -> AnyRow:
    columns = fields(row_type)
    if len(cells) != len(columns):
        raise ValueError(f"{path}:{number}: {len(cells)} cells; expected {len(columns)}")
    kinds: dict[Any, Any] = {"int": int, "float": float, "str": str}  # annotations are text
    try:
        values = {f.name: kinds[f.type](cell) for f, cell in zip(columns, cells, strict=True)}
    except ValueError as error:
        raise ValueError(f"{path}:{number}: {error}") from None
    return row_type(**values)
