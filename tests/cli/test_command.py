"""Errors of tyro in one line, at a terminal as in a pipe."""

from __future__ import annotations

import io
import re
import sys

import pytest

from autoformer_zoo.cli.command import parse_arguments


class Terminal(io.StringIO):
    """A stdout that tyro draws frames and colours for."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def command(size: int, number: int = 1) -> int:
    """Multiply.

    Args:
        size: a size.
        number: how many.
    """
    return size * number


def parse(*words: str) -> int:
    return parse_arguments("multiply", command, words)


@pytest.mark.parametrize("stdout", [io.StringIO, Terminal], ids=["pipe", "terminal"])
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ("--size", "2", "--nmber", "3"),
            "Unrecognized options: --nmber, 3 (perhaps --number)",
        ),
        (("--size", "x"), "Error parsing --size: invalid literal for int() with base 10: 'x'"),
        ((), "Missing from multiply: --size INT"),
    ],
    ids=["unknown", "wrong", "missing"],
)
def test_refusal_is_one_line_without_colours(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], text: str, stdout: type[io.StringIO]
) -> None:
    monkeypatch.setattr(sys, "stdout", stdout())
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(ValueError, match=f"^{re.escape(text)}[^\x1b╭\n]*; see multiply --help$"):
        parse(*words)
    assert sys.stdout.getvalue() == ""


def test_help_keeps_its_frame_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    with pytest.raises(SystemExit, match="0"):
        parse("--help")
    assert "╭" in sys.stdout.getvalue()
    assert sys.stdout.getvalue().count("usage:") == 1


def test_right_arguments_are_parsed() -> None:
    assert parse("--size", "2", "--number", "3") == 6
