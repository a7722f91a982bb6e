"""Wrong flags told in one line: tyro would draw a frame of many lines around them."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

Parsed = TypeVar("Parsed")

_RULE = re.compile(r"^ *-+ *$", re.MULTILINE)
_FLAG = re.compile(r"^ +(--[\w.-]+)", re.MULTILINE)
_MOST_SIMILAR = 3  # flags that a line names


def parse_arguments(parse: Callable[[], Parsed], program: str) -> Parsed:
    """Call tyro, and turn what it refuses into an error of one line.

    Args:
        parse: calls `tyro.cli`.
        program: the command, as a user types it.

    Raises:
        ValueError: the arguments are wrong; the text has the flags that are similar.
        SystemExit: help was asked for and printed.
    """
    # tyro looks at stdout to draw: where that is no terminal, there are neither lines nor colours.
    with contextlib.redirect_stderr(io.StringIO()) as text:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return parse()
        except SystemExit as stop:
            if stop.code:
                raise ValueError(f"{_message(text.getvalue())}; see {program} --help") from None
    return parse()  # --help, in all its beauty


def _message(text: str) -> str:
    """Return the message of a frame (title, message, similar flags, advice), and those flags."""
    _, message, *rest = [*_RULE.split(text), "", ""]
    line = " ".join(message.split()).rstrip(".") or "the arguments were not understood"
    similar = list(dict.fromkeys(_similar(rest)))[:_MOST_SIMILAR]
    return f"{line} (perhaps {' or '.join(similar)})" if similar else line


def _similar(parts: list[str]) -> Iterator[str]:
    for part in parts:
        if part.lstrip().startswith(("Perhaps you meant", "Arguments similar")):
            yield from _FLAG.findall(part)
