"""The README's code blocks run as pasted, and print what it shows."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from pathlib import Path

import pytest

from autoformer_zoo.cli.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAX_LINES = 150
NEEDS_NETWORK = "<!-- needs the network -->\n"


def _blocks() -> list[tuple[str, str]]:
    """Return language and text of each code block that needs no network."""
    text = re.sub(re.escape(NEEDS_NETWORK) + r"```.*?\n```\n", "", README, flags=re.DOTALL)
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def _run(language: str, block: str) -> str:
    """Run a block of Python, or the `autoformer-zoo` lines of a shell block; return its output."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        if language == "python":
            exec(compile(block, "README.md", "exec"), {})
        for command in re.findall(r"^(?:\.venv/bin/)?autoformer-zoo (.*)$", block, re.MULTILINE):
            assert main(command.split()) == 0, command
    return out.getvalue()


def test_readme_is_short() -> None:
    assert README.count("\n") <= MAX_LINES


def test_code_blocks_run_and_print_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    compared, output = 0, ""
    for language, block in _blocks():
        if language == "text":
            assert output == block
            compared += 1
        else:
            assert language in ("python", "sh")
            output = _run(language, block)
    assert compared == 2
