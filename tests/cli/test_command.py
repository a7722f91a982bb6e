"""run_command: one-line errors, exit codes, and where results are written."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoformer_zoo.cli.command import parse_arguments, run_command
from autoformer_zoo.weights.files import CheckpointError, check_output


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
        (("--size", "2", "--nmber", "3"), "Unrecognized options: --nmber, 3 (perhaps --number)"),
        (("--size", "x"), "Error parsing --size: invalid literal for int() with base 10: 'x'"),
        ((), "Missing from multiply: --size INT"),
    ],
    ids=["unknown", "wrong", "missing"],
)
def test_wrong_argument_is_reported_in_one_line_without_colours(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], text: str, stdout: type[io.StringIO]
) -> None:
    monkeypatch.setattr(sys, "stdout", stdout())
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(ValueError, match=f"^{re.escape(text)}; see multiply --help$"):
        parse(*words)
    assert sys.stdout.getvalue() == ""


@pytest.mark.parametrize("no_color", ["", "1"])
def test_help_is_drawn_for_a_terminal(monkeypatch: pytest.MonkeyPatch, no_color: str) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    with pytest.raises(SystemExit, match="0"):
        parse("--help")
    text = sys.stdout.getvalue()
    assert text.count("usage:") == 1
    assert ("╭" in text) == ("\x1b[" in text) == (not no_color)


@pytest.mark.parametrize(
    ("outcome", "code", "err"),
    [
        (None, 0, ""),
        (3, 3, ""),
        (ValueError("two\nlines"), 2, "it: two lines\n"),
        (FileNotFoundError("no file"), 2, "it: no file\n"),
        (CheckpointError("damaged"), 2, "it: damaged\n"),
        (ArithmeticError("known"), 1, "it: known\n"),
        (ArithmeticError("silent"), 1, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_code(capsys: pytest.CaptureFixture[str], outcome: Any, code: int, err: str) -> None:
    def run(size: int = 1) -> int | None:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    failures = (ArithmeticError,)
    found = run_command(
        "it", run, [], failures=failures, is_silent=lambda error: str(error) == "silent"
    )
    assert (found, *capsys.readouterr()) == (code, "", err)
    outcome = TypeError("a fault")  # of the program
    with pytest.raises(TypeError, match="a fault"):
        run_command("it", run, [])


def test_log_goes_to_stderr_while_the_command_runs(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("autoformer_zoo.some.module")

    def run(size: int = 1) -> None:
        logger.warning("look")
        logger.info("quiet")

    run_command("python -m it", run, [], log_level=logging.WARNING)
    logger.warning("not shown")
    assert capsys.readouterr() == ("", "it: look\n")


def test_reader_that_leaves_is_not_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(size: int = 1) -> None:
        print("unread", flush=True)

    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert run_command("it", run, []) == 141
        stdout.write("what is still buffered goes nowhere")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("name", "code"), [("stdout", 0), ("stderr", 2)])
def test_what_a_closed_stream_would_show_goes_nowhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, code: int
) -> None:
    def run(size: int = 1) -> None:
        if code:
            raise ValueError("lost")
        print("lost", sys.stdout.isatty(), flush=True)

    monkeypatch.setattr(sys, name, None)
    assert run_command("it", run, []) == code
    getattr(sys, name).close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("make", [torch.empty, np.empty])
def test_size_beyond_the_memory_is_one_line(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(size: int = 2**58) -> None:
        make(size)

    assert run_command("it", run, []) == 2
    expected = "it: there is not enough memory for this; give smaller sizes\n"
    assert capsys.readouterr() == ("", expected)


@pytest.mark.parametrize(
    ("out", "text"),
    [
        ("out.pth", "expected a file name that ends in .onnx or .safetensors"),
        ("no/such/out.onnx", "does not exist; make it first"),
        ("input.onnx", "is an input as well; give the result another name"),
        ("folder.onnx", "is a folder; expected the name of a file"),
        ("/proc/out.onnx", "cannot write to the folder /proc: "),
    ],
)
def test_output_that_cannot_be_written_is_refused(tmp_path: Path, out: str, text: str) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "input.onnx").touch()
    suffixes = (".onnx", ".safetensors")
    with pytest.raises(ValueError, match=re.escape(text)):
        check_output(tmp_path / out, (tmp_path / "input.onnx", tmp_path / "none"), suffixes)
    check_output(tmp_path / "out.onnx", suffixes=suffixes)
    check_output(tmp_path / "new" / "out.onnx", make_folder=True)
    assert not (tmp_path / "new").exists()
