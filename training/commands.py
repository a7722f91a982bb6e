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
        preset: Literal["nano", "nano-32", "nano-long", "smoke"] = "nano",
        stop_at: int | None = None,
        overrides: Annotated[str, tyro.conf.arg(metavar="JSON")] = "{}",
    ) -> None:
        """Train a supernet.

        Args:
            data_dir: directory that holds cifar-10-batches-py.
            out: run directory; an unfinished run in it goes on.
            preset: which config to start from.
            stop_at: step to stop at, with a checkpoint; to the end where it is not given.
            overrides: fields of the config to change, as a JSON object.
        """
        values = {**json.loads(PRESETS[preset].to_json()), **json.loads(overrides)}
        config = TrainConfig.from_json(json.dumps(values))
        state = train(config, data_dir, out, stop_at=stop_at)
        print(json.dumps({"steps": state.step, "seconds": state.seconds, "skipped": state.skipped}))

    return run_command(command, argv, prog="python -m training.train")


def run_choose(argv: list[str] | None = None) -> int:
    """Parse and run `python -m training.choose`."""
    from training.choose import choose, write_json
    from training.plot import plot_run

    def command(
        run: Path,
        data_dir: Path,
        out: Path,
        results: Path = Path("results.json"),
        plot: Path | None = None,
        candidates: int = 60,
        random_tested: int = 20,
    ) -> None:
        """Choose a subnet on held-out pictures and keep the supernet.

        Args:
            run: run directory of training.train.
            data_dir: directory that holds cifar-10-batches-py.
            out: canonical supernet file to write, fp16.
            results: JSON file to write with everything measured.
            plot: picture to write, .svg or .png; none where it is not given.
            candidates: random subnets to choose from.
            random_tested: of these, how many are tested on the test set, beside the chosen one.
        """
        measured = choose(run, data_dir, out, candidates, random_tested)
        write_json(measured, results)
        if plot is not None:
            plot_run(run, measured, plot)
        print(json.dumps({key: measured[key] for key in measured if key != "held_out"}))

    return run_command(command, argv, prog="python -m training.choose")


def run_command(command: Callable[..., Any], argv: list[str] | None, prog: str) -> int:
    """Run a command made from a function's signature; a user's mistake is one line and code 2."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    try:
        tyro.cli(command, args=argv, prog=prog)
    except (ValueError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    return 0
