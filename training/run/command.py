"""Commands of the training package: the shared `run_command` with what training adds to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

from autoformer_zoo.cli import command
from training.run.distributed import TrainingError, current_rank, is_shared


def run_command(prog: str, function: Callable[..., Any], argv: Sequence[str] | None) -> int:
    """Run a command made from a function's signature; exit codes as in `cli.command`."""
    return command.run_command(
        prog,
        function,
        argv,
        failures=(TrainingError,),
        is_silent=lambda error: current_rank() != 0 and is_shared(error),
    )


def value_of(flag: str, words: Sequence[str]) -> str | None:
    """Find a flag's value before the rest is parsed, as --flag VALUE or --flag=VALUE.

    A preset decides the defaults of the other flags, so it has to be known first. Underscores count
    as hyphens in a flag's name, as they do for tyro.
    """
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        name, is_joined, value = word.partition("=")
        if name.replace("_", "-") == flag:
            return value if is_joined else following
    return None
