"""Pictures per second of a supernet step, by form of the attention and precision.

    python -m training.step_speed --space nano --batch-size 128

Forward and backward pass of one random subnet a round, the same for all competitors; without data
loading and optimizer, which are the same for all of them. The explicit form in fp32 is what the
official code computes. The last line is one JSON document.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F

from autoformer_zoo.attention import AttentionForm
from autoformer_zoo.space import SubnetConfig
from benchmarks.timing import Plan, measure, ratio_of_medians, summarise, wall_stopwatch
from training.supernet import Supernet
from training.train import find_space

BASELINE = "explicit fp32"


def measure_step(
    space: str = "nano",
    batch_size: int = 128,
    rounds: int = 10,
    precision: tuple[Literal["fp32", "bf16"], ...] = ("fp32",),
    form: tuple[Literal["explicit", "augmented", "decomposed"], ...] = ("explicit", "decomposed"),
) -> list[dict[str, float | str]]:
    """Time a training step of random subnets in interleaved rounds.

    Args:
        space: which search space.
        batch_size: pictures a step.
        rounds: random subnets, each timed in every form and precision.
        precision: of the forward and backward pass; bf16 by autocast.
        form: of the attention.

    Returns:
        A row for each form and precision: pictures per second, and the speed over explicit fp32.
    """
    setting = find_space(space)
    images = torch.randn(batch_size, 3, setting.img_size, setting.img_size)
    labels = torch.arange(batch_size) % setting.num_classes

    def step(supernet: Supernet, precision: str, subnets: Iterator[SubnetConfig]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = supernet(images, next(subnets))
        supernet.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()

    def competitor(form: AttentionForm, precision: str) -> Callable[[], None]:
        torch.manual_seed(0)
        supernet, rng = Supernet(setting, attention=form), random.Random(0)
        subnets = iter(lambda: setting.sample(rng), None)
        return lambda: step(supernet, precision, subnets)

    wanted = {f"{f} {p}": (f, p) for p in precision for f in form}
    wanted.setdefault(BASELINE, ("explicit", "fp32"))
    competitors = {name: competitor(*each) for name, each in wanted.items()}
    times = measure(competitors, Plan(rounds, warmup=1, settle=0), wall_stopwatch())
    rows: list[dict[str, float | str]] = []
    for name, spent in times.items():
        summary, ratio = summarise(spent), ratio_of_medians(times[BASELINE], spent)
        rows.append(
            {
                "what": name,
                "pictures_per_s": 1e3 * batch_size / summary.median_ms,
                "median_ms": summary.median_ms,
                "speed_over_explicit_fp32": ratio.ratio,
                "low": ratio.low,
                "high": ratio.high,
            }
        )
    for row in rows:
        print(
            f"{row['what']:18s} {row['pictures_per_s']:8.1f} pictures/s   "
            f"{row['speed_over_explicit_fp32']:.2f} ({row['low']:.2f}-{row['high']:.2f}) x"
        )
    print(json.dumps(rows))
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    from training.commands import run_command

    return run_command(measure_step, argv, prog="python -m training.step_speed")


if __name__ == "__main__":
    sys.exit(main())
