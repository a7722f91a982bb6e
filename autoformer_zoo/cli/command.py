"""What every command of the project shares: parsing, one-line errors, exit codes, log output.

`autoformer-zoo`, `python -m training...`, `python -m benchmarks...` and `python -m hub...` all run
through `run_command`. Arguments are parsed by tyro from a dataclass or a function's signature.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

import tyro

from autoformer_zoo.weights.files import CheckpointError

PROGRAM = "autoformer-zoo"
LOGGERS = ("autoformer_zoo", "benchmarks", "hub", "training")
USER_ERRORS = (ValueError, OSError, CheckpointError)  # wrong input: exit code 2

_RULE = re.compile(r"^ *-+ *$", re.MULTILINE)
_FLAG = re.compile(r"^ +(--[\w.-]+)", re.MULTILINE)
_MAX_SIMILAR = 3  # flags that an error suggests

Parsed = TypeVar("Parsed")


def run_command(
    prog: str,
    arguments: Any,
    argv: Sequence[str] | None,
    run: Callable[[Any], int | None] | None = None,
    *,
    description: str | None = None,
    config: Sequence[Any] = (),
    failures: tuple[type[Exception], ...] = (),
    is_silent: Callable[[Exception], bool] = lambda error: False,
    log_level: int = logging.INFO,
) -> int:
    """Parse the arguments, run the command and return its exit code.

    Args:
        prog: the command as a user types it.
        arguments: what tyro parses: a dataclass, a union of subcommands, or a function, which is
            called with its own arguments.
        argv: arguments without the program's name; None takes those of the process.
        run: called with the parsed dataclass; returns an exit code, or None for 0. Not used for
            functions.
        description: text of `--help`; the docstring of `arguments` by default.
        config: options of `tyro.cli`.
        failures: exceptions that are reported in one line with exit code 1.
        is_silent: True for an error that another process reports.
        log_level: of the project's own loggers, which write to stderr while the command runs.

    Returns:
        The exit code: 0, 1 after one of `failures`, 2 for wrong input, 130 for Ctrl-C, 141 if the
        reader of stdout went away.
    """
    if inspect.isfunction(arguments):
        arguments, run = _bound(arguments), lambda call: call()
    assert run is not None
    with contextlib.suppress(AttributeError):  # file names may hold what a terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        with logs_on_stderr(prog.removeprefix("python -m "), log_level):
            code = run(parse_arguments(prog, arguments, argv, description, config))
            sys.stdout.flush()
        return code or 0
    except SystemExit as stop:  # tyro's, after --help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Otherwise the interpreter flushes into the closed pipe once more at exit, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if not isinstance(error, (*USER_ERRORS, *failures)):
            raise  # a fault of the program: its traceback is wanted
        if not is_silent(error):
            print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, USER_ERRORS) else 1


def parse_arguments(
    prog: str,
    arguments: Callable[..., Parsed],
    argv: Sequence[str] | None,
    description: str | None = None,
    config: Sequence[Any] = (),
) -> Parsed:
    """Parse arguments with tyro, with errors of one line in place of its frame of many lines.

    Raises:
        ValueError: the arguments are wrong; the text names similar flags.
        SystemExit: help was printed.
    """

    def parse() -> Parsed:
        words = list(sys.argv[1:] if argv is None else argv)
        return tyro.cli(
            arguments, prog=prog, description=description, args=words, config=tuple(config)
        )

    # tyro looks at stdout to draw: if that is no terminal, there are neither lines nor colours.
    with contextlib.redirect_stderr(io.StringIO()) as text:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return parse()
        except SystemExit as stop:
            if stop.code:
                raise ValueError(f"{_message(text.getvalue())}; see {prog} --help") from None
    return parse()  # --help, drawn for the terminal


@contextlib.contextmanager
def logs_on_stderr(prefix: str, level: int = logging.INFO) -> Iterator[None]:
    """Write the log of the project's packages to stderr inside the block."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{prefix}: %(message)s"))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(before)


def check_output(
    out: Path, inputs: Sequence[Path] = (), suffixes: Sequence[str] = (), make_folder: bool = False
) -> None:
    """Check before the work starts that a result can be written.

    Args:
        out: the file to write.
        inputs: files that are read; `out` must not be one of them.
        suffixes: what the name may end in; any by default.
        make_folder: True if the folder will be made.

    Raises:
        ValueError: the name or the folder cannot be used.
    """
    if suffixes and out.suffix not in suffixes:
        raise ValueError(f"{out}: expected a file name that ends in {' or '.join(suffixes)}")
    if not make_folder and not out.parent.is_dir():
        raise ValueError(f"the folder {out.parent} does not exist; make it first")
    if out.is_dir():
        raise ValueError(f"{out} is a folder; expected the name of a file")
    if out.exists() and any(path.exists() and out.samefile(path) for path in inputs):
        raise ValueError(f"{out} is an input as well; give the result another name")


def _bound(function: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """Return a function that parses like `function` and returns the call to be made."""

    @wraps(function)  # tyro reads the signature and the docstring
    def bind(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        return partial(function, *args, **kwargs)

    return bind


def _message(text: str) -> str:
    """Return the message of a frame (title, message, similar flags, advice), and those flags."""
    _, message, *rest = [*_RULE.split(text), "", ""]
    line = " ".join(message.split()).rstrip(".") or "the arguments were not understood"
    similar = list(dict.fromkeys(_similar(rest)))[:_MAX_SIMILAR]
    return f"{line} (perhaps {' or '.join(similar)})" if similar else line


def _similar(parts: list[str]) -> Iterator[str]:
    for part in parts:
        if part.lstrip().startswith(("Perhaps you meant", "Arguments similar")):
            yield from _FLAG.findall(part)
