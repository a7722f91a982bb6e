"""The command `autoformer-zoo`: list, info, predict, extract, export.

A thin layer: each verb is a dataclass whose fields are its arguments and whose `run` yields lines
of output. What a verb does lives in the package and can be called from Python. Results go to
stdout, everything else to stderr; wrong input is one line there and exit code 2.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from autoformer_zoo import __version__
from autoformer_zoo.cli.command import PROGRAM, run_command
from autoformer_zoo.cli.export import Export
from autoformer_zoo.cli.extract import Extract
from autoformer_zoo.cli.models import (
    Info,
    List,
)
from autoformer_zoo.cli.predict import Predict

Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Extract, tyro.conf.subcommand("extract")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit codes as in `run_command`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        print(f"{PROGRAM} {__version__}")
        return 0
    return run_command(
        PROGRAM,
        Command,
        words,
        _run,
        description="List, run, extract and export AutoFormer models; --version shows the version.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        log_level=logging.WARNING,
    )


def _run(command: Command) -> None:
    for line in command.run():
        print(line, flush=True)  # each image's predictions appear as soon as they are known


if __name__ == "__main__":
    sys.exit(main())
