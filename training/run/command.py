"""Commands of the training package: the shared `run_command` with what training adds to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import zip_longest
from typing import Any

from autoformer_zoo.cli import command
from training.run.distributed import TrainingError, is_shared

EXTRA = ("tqdm", "matplotlib", "scipy")  # of the extra `train`; torchvision comes with timm


def run_command(prog: str, function: Callable[..., Any], argv: Sequence[str] | None) -> int:
    """Run a command made from a function's signature; exit codes as in `cli.command`."""
    if missing := [name for name in EXTRA if find_spec(name) is None]:
        print(
            f"{prog}: {' and '.join(missing)} not installed: pip install 'autoformer_zoo[train]'",
            file=sys.stderr,
        )
        return 2
    return command.run_command(
        prog, function, argv, failures=(TrainingError,), is_silent=_is_silent
    )


def _is_silent(error: Exception) -> bool:
    """Return True if rank 0 reports this error for all processes."""
    return os.environ.get("RANK", "0") != "0" and is_shared(error)


def value_of(flag: str, words: Sequence[str]) -> str | None:
    """Find a flag's value before the rest is parsed, as --flag VALUE or --flag=VALUE."""
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if word == flag:
            return following
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return None
