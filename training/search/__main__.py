"""TODO docstring."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from training.presets import PRESETS
from training.search.config import DEFAULT_SEARCH, SearchConfig
from training.search.evaluation import open_subject
from training.search.search import search


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    from training.run.command import run_command

    def command(
        data_dir: Path,
        out: Path,
        run_dir: Path | None = None,
        supernet: Path | None = None,
        preset: str = "cifar10",
        device: Literal["auto", "cpu", "cuda"] = "auto",
        images: int = 0,
        config: Annotated[SearchConfig, tyro.conf.arg(name="")] = DEFAULT_SEARCH,
    ) -> None:
        """Search a trained supernet for the best subnet within limits.

        Args:
            data_dir: root of the data.
            out: directory to write; an unfinished search in it goes on.
            run_dir: run directory of training.train.
            supernet: file of a supernet, instead of a run.
            preset: with a file, whose space, data and held-out images to take.
            device: where candidates run.
            images: held-out images that candidates are scored on; 0: all.
        """
        if preset not in PRESETS:
            raise ValueError(f"preset is {preset!r}; expected one of {', '.join(PRESETS)}")
        subject = open_subject(data_dir, run_dir, supernet, preset, config.half, device, images)
        result = search(subject, config, out)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps({**result["candidates"][result["best"]], "out": str(out)}))

    return run_command("python -m training.search", command, argv)


if __name__ == "__main__":
    sys.exit(main())
