"""Files that appear when they are complete: a killed process leaves no half-written one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to, and rename it to `path` if the block succeeds."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a small file, making its folder; it appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with complete_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
