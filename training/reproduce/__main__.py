"""TODO docstring."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import tyro

from training.config import DEFAULT_RESOURCES, Resources
from training.reproduce.config import PRESETS, STAGES, ReproduceConfig, StageName
from training.reproduce.estimate import plan
from training.reproduce.stages import Reproduction


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    from training.run.command import run_command, value_of

    words = sys.argv[1:] if argv is None else argv
    base = PRESETS.get(value_of("--preset", words) or "", PRESETS["cifar10"])

    def command(
        data_dir: Path,
        out: Path,
        preset: str = "cifar10",
        first: Annotated[StageName, tyro.conf.arg(name="from")] = "train",
        last: Annotated[StageName, tyro.conf.arg(name="to")] = "report",
        plan_only: bool = False,
        config: Annotated[ReproduceConfig, tyro.conf.arg(name="")] = base,
        resources: Annotated[Resources, tyro.conf.arg(name="")] = DEFAULT_RESOURCES,
    ) -> None:
        """Reproduce the method of the paper.

        Args:
            data_dir: root of the data.
            out: directory to write; an unfinished reproduction in it goes on.
            preset: which config to start from; every other flag changes it.
            first: stage to start from; those before it have to be done.
            last: stage to stop after.
            plan_only: tell the plan and stop.
        """
        if preset not in PRESETS:
            raise ValueError(f"preset is {preset!r}; expected one of {', '.join(PRESETS)}")
        whole = Reproduction(config, data_dir, out, resources)
        names = whole.check(first, last)
        left = [name for name in names if not whole.is_done(name)]
        if whole.ranks.is_first:
            lines = plan(config, names, left, data_dir, resources, whole.ranks.world)
            print("\n".join(lines), flush=True)
        if not plan_only:
            whole.run(first, last)
        if not whole.ranks.is_first:
            return
        done = [name for name in STAGES if whole.is_done(name)]
        if "report" in done:
            print((out / "report.md").read_text())
        print(json.dumps({"out": str(out), "done": done}))

    return run_command("python -m training.reproduce", command, words)


if __name__ == "__main__":
    sys.exit(main())
