"""What a search under a latency budget buys, against the published subnet of a space.

    python -m benchmarks.budgets.gains --space small --backend onnxruntime --precision int8

With the latency profile of this machine: the subnet with the highest predicted accuracy that is no
slower than the published one, and the fastest one that is predicted to be no less accurate. All
three are built and timed together. The accuracies are predictions of inherited weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autoformer_zoo.cli.command import run_command
from autoformer_zoo.published import SUBNETS, find_space
from autoformer_zoo.specialization.constraints import Bounds, reachable
from autoformer_zoo.specialization.latency.measure import profile_device, time_subnets
from autoformer_zoo.specialization.latency.profile import Backend, Precision
from autoformer_zoo.specialization.selection import Choices, Specialized

STEPS = 12  # of the search for the lowest latency: 1/4096 of what the space reaches


@dataclass(frozen=True, slots=True)
class GainOptions:
    """Time what a budget buys against the published subnet."""

    space: str = "small"  # search space: small or base; tiny's does not hold its published subnet
    backend: Backend = "eager"  # what runs the networks
    precision: Precision = "fp32"  # their number format
    threads: int = torch.get_num_threads()  # on the CPU
    seconds: float = 60.0  # of timing the three networks


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command("python -m benchmarks.budgets.gains", GainOptions, argv, _run)


def _run(options: GainOptions) -> None:
    space, subnet = find_space(options.space), SUBNETS.get(f"autoformer_{options.space}")
    if subnet is None or not space.contains(subnet):
        raise ValueError(f"space {options.space} holds no published subnet; expected small or base")
    setting: dict[str, Any] = {
        "backend": options.backend,
        "precision": options.precision,
        "threads": options.threads,
    }
    profile = profile_device(options.space, **setting)
    choices = Choices.of(options.space, profile=profile)
    (published,) = choices.describe([subnet])
    assert published.latency_ms is not None
    found = {
        "published": published,
        "no slower": choices.search(Bounds(max_latency_ms=published.latency_ms))[0],
        "no less accurate": find_fastest(choices, published.top1.value),
    }
    subnets = [each.subnet for each in found.values()]
    timed = time_subnets(space, profile.setting, subnets, options.seconds, fewest=None)
    for (name, each), ms in zip(found.items(), timed.ms, strict=True):
        top1 = each.top1
        print(
            f"{name:17s} {top1.value:6.2f} % ({top1.low:.2f} to {top1.high:.2f}), "
            f"{each.params / 1e6:6.2f} M, {each.latency_ms:7.2f} ms by the profile, "
            f"{ms:7.2f} ms measured"
        )
    print(f"standard error of a timing {timed.noise_percent:.1f} %; {profile.setting}")
    print(
        json.dumps(
            {
                "machine": profile.machine,
                "setting": str(profile.setting),
                **{
                    name: {**each.to_dict(), "measured_ms": ms}
                    for (name, each), ms in zip(found.items(), timed.ms, strict=True)
                },
            }
        )
    )


def find_fastest(choices: Choices, top1_percent: float) -> Specialized:
    """Return the fastest subnet that is predicted to have this accuracy, by bisection."""
    (cost,) = (each for each in choices.costs if each.name == "latency_ms")
    low, high = reachable(choices.space, cost)
    best = choices.search(Bounds(max_latency_ms=high))[0]
    for _ in range(STEPS):
        middle = (low + high) / 2
        found = choices.search(Bounds(max_latency_ms=middle))[0]
        if found.top1.value >= top1_percent:
            best, high = found, middle
        else:
            low = middle
    return best


if __name__ == "__main__":
    sys.exit(main())
