"""The command `autoformer-zoo`: models, predictions, attention, files, the best subnets.

Each verb is a dataclass whose fields are its arguments and whose `run` yields lines of output.
Results go to stdout, everything else to stderr; wrong input is one line there and exit code 2.

Verbs import torch and timm in `run`, not above: `--version`, `--help` and `list` answer at once.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from autoformer_zoo import __version__
from autoformer_zoo.cli.attention import Attention
from autoformer_zoo.cli.command import PROGRAM, run_command
from autoformer_zoo.cli.export import Export
from autoformer_zoo.cli.extract import Extract
from autoformer_zoo.cli.models import Info, List
from autoformer_zoo.cli.predict import Predict
from autoformer_zoo.cli.specialize import Profile, Specialize


@dataclass(frozen=True, slots=True)
class Arguments:
    """Arguments of the command line."""

    verb: (
        Annotated[List, tyro.conf.subcommand("list")]
        | Annotated[Info, tyro.conf.subcommand("info")]
        | Annotated[Predict, tyro.conf.subcommand("predict")]
        | Annotated[Attention, tyro.conf.subcommand("attention")]
        | Annotated[Extract, tyro.conf.subcommand("extract")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Specialize, tyro.conf.subcommand("specialize")]
        | Annotated[Profile, tyro.conf.subcommand("profile")]
    )
    version: bool = False
    """Print the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit codes as in `run_command`."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # since `start.py`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:  # tyro insists on a verb
        print(f"{PROGRAM} {__version__}")
        return 0
    return run_command(
        PROGRAM,
        Arguments,
        words,
        _run,
        description="List, run, extract, export and specialize AutoFormer models.",
        config=(
            tyro.conf.OmitArgPrefixes,
            tyro.conf.OmitSubcommandPrefixes,
            tyro.conf.FlagCreatePairsOff,
        ),
        # Progress is for someone who watches; warnings are for log files too.
        log_level=logging.INFO if sys.stderr and sys.stderr.isatty() else logging.WARNING,
    )


def _run(arguments: Arguments) -> None:
    lines = [f"{PROGRAM} {__version__}"] if arguments.version else arguments.verb.run()
    for line in lines:
        print(line, flush=True)  # each image's predictions appear as soon as they are known
