"""The reproduction as a command; it prints its plan with the expected time first.

python -m training.reproduce --data-dir DATA --out runs/reproduce             # preset cifar10
python -m training.reproduce --data-dir DATA --out runs/smoke --preset smoke
python -m training.reproduce --data-dir DATA --out runs/smoke --preset smoke --from compare
python -m training.reproduce --data-dir DATA --out runs/reproduce --plan-only
torchrun --nproc-per-node 2 -m training.reproduce --data-dir DATA --out runs/two
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import tyro

from training.reproduce.config import PHASE_NAMES, PRESETS, PhaseName, Preset, ReproduceConfig
from training.reproduce.estimate import describe_plan, expected_seconds, measure
from training.reproduce.phases import Reproduction
from training.run.command import run_command, value_of
from training.settings.config import DEFAULT_RESOURCES, Resources


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    base = PRESETS.get(value_of("--preset", words) or "", PRESETS["cifar10"])

    def command(
        data_dir: Path,
        out: Path,
        preset: Preset = "cifar10",
        first: Annotated[PhaseName, tyro.conf.arg(name="from")] = "train",
        last: Annotated[PhaseName, tyro.conf.arg(name="to")] = "report",
        plan_only: bool = False,
        config: Annotated[ReproduceConfig, tyro.conf.arg(name="")] = base,
        resources: Annotated[Resources, tyro.conf.arg(name="")] = DEFAULT_RESOURCES,
    ) -> None:
        """Reproduce the method of the paper.

        Args:
            data_dir: root of the data: holds cifar-10-batches-py, or train/CLASS/IMAGE
            out: directory to write; an unfinished reproduction in it is resumed
            preset: config to start from, changed by all other flags
            first: phase to start from; those before it must be done
            last: phase to stop after
            plan_only: print the plan and stop
        """
        whole = Reproduction(config, data_dir, out, resources)
        selected = whole.select(first, last)
        remaining = [name for name in selected if not whole.is_done(name)]
        if whole.ranks.is_first:
            seconds: dict[PhaseName, float] = {}
            if remaining:  # some steps are trained to measure them
                measured = measure(whole.config.train, data_dir, resources)
                seconds = expected_seconds(whole.config, measured)
            shared = {name: value / whole.ranks.world for name, value in seconds.items()}
            print("\n".join(describe_plan(whole.config, selected, remaining, shared)), flush=True)
        if not plan_only:
            whole.run(first, last)
        if not whole.ranks.is_first:
            return
        done = [name for name in PHASE_NAMES if whole.is_done(name)]
        if "report" in done:
            print((out / "report.md").read_text())
        print(json.dumps({"out": str(out), "done": done}))

    return run_command("python -m training.reproduce", command, words)


if __name__ == "__main__":
    sys.exit(main())
