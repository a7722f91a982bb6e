"""What every command of the project shares: parsing, one-line errors, exit codes, log output.

`autoformer-zoo`, `python -m training...`, `python -m benchmarks...` and `python -m hub...` all run
through `run_command`. Arguments are parsed by tyro from a dataclass or a function's signature.
Imports neither torch nor timm: a wrong flag and `--help` are answered at once.
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
from typing import Any, TypeVar

import tyro

PROGRAM = "autoformer-zoo"
TOO_LARGE = "DefaultCPUAllocator: can't allocate memory"  # of a RuntimeError of PyTorch
LOGGERS = ("autoformer_zoo", "benchmarks", "hub", "training")

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
        The exit code: 0, 1 after one of `failures`, 2 for wrong input (ValueError, OSError,
        CheckpointError) or too little memory, 130 for Ctrl-C, 141 if the reader of stdout went
        away.
    """
    if inspect.isfunction(arguments):
        arguments, run = _bound(arguments), lambda call: call()
    assert run is not None
    for name in ("stdout", "stderr"):  # None if the descriptor is closed
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    with contextlib.suppress(AttributeError):  # names may hold what a terminal cannot encode
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
        if isinstance(error, MemoryError) or TOO_LARGE in str(error):
            error = ValueError("there is not enough memory for this; give smaller sizes")
        is_wrong_input = _is_wrong_input(error)
        if not is_wrong_input and not isinstance(error, failures):
            raise  # a fault of the program: its traceback is wanted
        if not is_silent(error):
            print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if is_wrong_input else 1


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
            arguments, prog=prog, description=description, args=words, config=tuple(config) or None
        )

    # tyro looks at stdout to draw: if it is not a terminal, there are no lines or colours.
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(err):
        try:
            with contextlib.redirect_stdout(out):
                return parse()
        except SystemExit as stop:
            if stop.code:
                raise ValueError(_message(err.getvalue(), prog)) from None
    if os.environ.get("NO_COLOR"):  # https://no-color.org, which tyro does not read
        print(out.getvalue(), end="")
        raise SystemExit(0)
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


def option(metavar: str, default: str = "", text: str | None = None) -> Any:
    """Annotate a flag that is None if left out; `--help` then shows `default`, not None.

    Args:
        metavar: stands for the value in `--help`.
        default: what happens without the flag, in brackets.
        text: what the flag does; None takes the field's docstring.
    """
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=default, help=text)


def _bound(function: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """Return a function that parses like `function` and returns the call to be made."""

    @wraps(function)  # tyro reads the signature and the docstring
    def bind(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        return partial(function, *args, **kwargs)

    return bind


def _is_wrong_input(error: Exception) -> bool:
    if isinstance(error, (ValueError, OSError)):
        return True
    from autoformer_zoo.weights.files import CheckpointError  # imports torch, so not before

    return isinstance(error, CheckpointError)


def _message(text: str, prog: str) -> str:
    """Turn tyro's text about wrong arguments into one line.

    The text consists of parts between rules of dashes: title, message, similar flags or known
    subcommands, and which `--help` to read.
    """
    _, message, *rest = [*re.split(r"^ *-+ *$", text, flags=re.MULTILINE), "", ""]
    # Below each missing argument, indented further, is its help: too long for one line.
    lines = [line.strip() for line in message.splitlines() if not line.startswith(" " * 8)]
    found = " ".join(filter(None, lines)).rstrip(".") or "the arguments were not understood"
    for part in rest:
        if part.lstrip().startswith(("Perhaps you meant", "Arguments similar")):
            similar = dict.fromkeys(re.findall(r"^ +(--[\w.-]+)", part, re.MULTILINE))
            found += f" (perhaps {' or '.join(list(similar)[:3])})"
        elif part.lstrip().startswith("Available subcommands"):
            found += f" ({' '.join(part.split()).lower()})"
    helped = re.findall(r"(?:run|see):?\s+(\S[^\n]*?) --help", text)
    return f"{found}; see {helped[-1] if helped else prog} --help"
