"""The small files of a search or report: written whole, or line by line so that a kill costs one.

A journal is JSON lines: a header that describes what the lines belong to, then one line for every
result. A process that is killed at any point starts again, reads the lines back, and continues;
under another header nothing is read back but the difference reported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.run.directory import write_text
from training.settings.config import require_same

__all__ = ["Journal", "read_json", "require_same", "write_json"]


class Journal:
    """Lines of JSON under a header, appended one by one.

    Args:
        path: the file; made with its folder if it does not exist.
        header: what the lines belong to.

    Raises:
        ValueError: the file has another header; the text shows the differences.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self._is_whole = False  # nothing is changed by reading
        header = json.loads(json.dumps(header))  # as it will be read back
        whole = _whole_lines(path)
        if not whole:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps({"header": header}) + "\n")
            self.lines: list[dict[str, Any]] = []
            return
        require_same(whole[0]["header"], header, path)
        self.lines = whole[1:]

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line; it is in the file when this returns."""
        with self.path.open("r+b") as file:
            if not self._is_whole:
                file.truncate(file.read().rfind(b"\n") + 1)  # what a kill tore off
                self._is_whole = True
            file.seek(0, os.SEEK_END)
            file.write(json.dumps(line).encode() + b"\n")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Read a file that `write_json` wrote.

    Raises:
        ValueError: it is damaged, or lacks a key.
    """
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("not an object")
        if missing := [key for key in keys if key not in values]:
            raise ValueError(f"{missing[0]} is missing")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to start again") from None
    return values


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Write indented JSON under a temporary name first.

    Raises:
        ValueError: a number is infinite or NaN, which JSON does not have.
    """
    write_text(path, json.dumps(values, indent=1, allow_nan=False) + "\n")


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Read the lines that are whole: what a kill tore off has no line end."""
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        if not all(isinstance(line, dict) for line in lines):
            raise ValueError("a line is not an object")
        if lines and not isinstance(lines[0].get("header"), dict):
            raise ValueError("the first line is not a header")
    except (ValueError, RecursionError) as error:  # the latter by thousands of brackets
        raise ValueError(f"{path} is damaged ({error}); delete it to start again") from None
    return lines
