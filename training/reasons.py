"""The reason in an error of another library: one line of a text that may have many, or none."""

from __future__ import annotations

LONGEST = 200  # characters


def reason_of(error: BaseException) -> str:
    """Return what an error says first; its kind where it says nothing."""
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0]
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
