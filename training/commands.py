"""Command lines of this package: flags made from the dataclasses, one-line errors, exit codes."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from training.config import PRESETS, TrainConfig


def run_train(argv: list[str] | None = None) -> int:
    """Parse and run `python -m training.train`."""
    from training.train import train

    def command(
        data_dir: Path,
        out: Path,
        preset: Literal["nano", "smoke"] = "nano",
        overrides: Annotated[str, tyro.conf.arg(metavar="JSON")] = "{}",
    ) -> None:
        """Train a supernet.

        Args:
            data_dir: directory that holds cifar-10-batches-py.
            out: run directory; an unfinished run in it goes on.
            preset: which config to start from.
            overrides: fields of the config to change, as a JSON object.
        """
        values = {**json.loads(PRESETS[preset].to_json()), **json.loads(overrides)}
        config = TrainConfig.from_json(json.dumps(values))
        state = train(config, data_dir, out)
        print(json.dumps({"steps": state.step, "seconds": state.seconds, "skipped": state.skipped}))

    return run(command, argv, prog="python -m training.train")


def run(command: Callable[..., Any], argv: list[str] | None, prog: str) -> int:
    """Run a command made from a function's signature; a user's mistake is one line and code 2."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    try:
        tyro.cli(command, args=argv, prog=prog)
    except (ValueError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    return 0
