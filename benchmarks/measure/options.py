"""What all benchmark commands share: flags from a dataclass, one-line errors, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from autoformer_zoo.cli import command

Options = TypeVar("Options")


def run_command(
    prog: str,
    options_type: type[Options],
    argv: Sequence[str] | None,
    work: Callable[[Options], tuple[str, dict[str, Any]]],
) -> int:
    """Parse the arguments, do the work, print its table and, as the last line, its JSON document.

    Args:
        prog: the command, as a user types it.
        options_type: a dataclass: its fields become flags.
        argv: arguments without the program's name; None takes the process'.
        work: returns the table for people and the document.

    Returns:
        The document's "exit_code", else 0; 2 where the input was wrong, with one line on stderr.
    """

    def run(options: Options) -> int:
        table, document = work(options)
        code = document.pop("exit_code", 0)
        print(table)
        print(json.dumps(document))
        return int(code)

    return command.run_command(prog, options_type, argv, run)


def shortened(options: Any, quick: dict[str, Any]) -> Any:
    """Put the values of `quick` where a dataclass of options still has its default.

    Args:
        options: an instance of a dataclass whose fields all have defaults.
        quick: values by field.
    """
    default = type(options)()
    changed = {
        f.name for f in fields(options) if getattr(options, f.name) != getattr(default, f.name)
    }
    return replace(options, **{k: v for k, v in quick.items() if k not in changed})


def require_positive(name: str, values: Sequence[float]) -> None:
    """Refuse an empty list, and numbers that are not positive.

    Raises:
        ValueError: as said; the text names the option.
    """
    if not values:
        raise ValueError(f"{name} is empty; expected at least one")
    if min(values) <= 0:
        raise ValueError(f"{name} is {values}; expected positive numbers")
