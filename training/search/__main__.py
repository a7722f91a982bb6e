"""The search as a command.

    python -m training.search --run-dir runs/cifar10 --data-dir DATA --out runs/search
    python -m training.search --run-dir runs/cifar10 --data-dir DATA --out runs/small \
        --bounds.max-params 2e6 --bounds.max-latency-ms 4
    python -m training.search --supernet autoformer_nano --data-dir DATA --out runs/nano
    torchrun --nproc-per-node 2 -m training.search ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from training.run.command import run_command
from training.run.distributed import join
from training.search.config import DEFAULT_SEARCH, SearchConfig
from training.search.evaluation import open_task
from training.search.scoring import share_threads
from training.search.search import search
from training.settings.config import Resources
from training.settings.presets import PRESETS


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""

    def command(
        data_dir: Path,
        out: Path,
        run_dir: Path | None = None,
        supernet: str | None = None,
        preset: str = "cifar10",
        device: Literal["auto", "cpu", "cuda"] = "auto",
        images: int = 0,
        config: Annotated[SearchConfig, tyro.conf.arg(name="")] = DEFAULT_SEARCH,
    ) -> None:
        """Search a trained supernet for the best subnet that satisfies the constraints.

        Args:
            data_dir: root of the data.
            out: directory to write; an unfinished search in it is resumed.
            run_dir: run directory of training.train.
            supernet: name of a model or file of a supernet, instead of a run.
            preset: with --supernet: preset for the space, the data and the held-out images.
            device: device that candidates run on.
            images: number of held-out images to score candidates on (0: all).
        """
        if preset not in PRESETS:
            raise ValueError(f"preset is {preset!r}; expected one of {', '.join(PRESETS)}")
        # A search has no batches to divide between processes.
        ranks = join(Resources(device=device), batch_size=0, makes_pairs=False)
        share_threads(ranks.world)
        used = str(ranks.device)
        task = open_task(data_dir, run_dir, supernet, preset, config.half, used, images)
        result = search(task, config, out, ranks)
        if ranks.is_first:
            print(json.dumps({**result["candidates"][result["best"]], "out": str(out)}))

    return run_command("python -m training.search", command, argv)


if __name__ == "__main__":
    sys.exit(main())
