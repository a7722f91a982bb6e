"""Make the catalogue of named slices, `autoformer_zoo/specialization/slices.json`.

    python -m benchmarks.budgets.slices                # searches, and times what it found
    python -m benchmarks.budgets.slices --seconds 0    # keeps no latencies

For each space and each of a list of sizes, the subnet with the highest predicted accuracy among
those of at most that many parameters. A size that is no better than a smaller one is left out. The
same seed finds the same subnets.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autoformer_zoo.cli.command import run_command
from autoformer_zoo.published import SPACES
from autoformer_zoo.specialization.constraints import Bounds
from autoformer_zoo.specialization.latency.measure import (
    Timed,
    describe_versions,
    machine_name,
    time_subnets,
)
from autoformer_zoo.specialization.latency.profile import Backend, Precision, RunSetting
from autoformer_zoo.specialization.selection import Choices, Specialized
from autoformer_zoo.specialization.slices import FILE
from autoformer_zoo.weights.whole_files import write_whole

# Largest numbers of parameters, in millions.
SIZES = {
    "tiny": (5.4, 5.5, 5.6, 5.8, 6.0, 6.2, 6.4, 6.6, 7.0, 7.5, 8.0),
    "small": (14, 15, 16, 17, 18, 20, 22, 24, 26, 28, 32),
    "base": (43, 44, 45, 46, 47, 48, 50, 52, 54, 58, 62),
}
SETTINGS: tuple[tuple[Backend, Precision], ...] = (
    ("eager", "fp32"),
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
)


@dataclass(frozen=True, slots=True)
class SliceOptions:
    """Make the catalogue of named slices."""

    out: Path = FILE  # file to write
    seed: int = 0  # of the searches
    threads: int = torch.get_num_threads()  # of the timed networks
    seconds: float = 60.0  # of timing for each space and setting; 0: time nothing


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command("python -m benchmarks.budgets.slices", SliceOptions, argv, _run)


def _run(options: SliceOptions) -> None:
    rows, errors = [], {}
    for space in SIZES:
        found = find_slices(space, options.seed)
        latency = _time(space, list(found.values()), options)
        errors.update({f"{space} {key}": timed.noise_percent for key, timed in latency.items()})
        rows += [
            _row(f"autoformer_{space}", name, each, {key: t.ms[i] for key, t in latency.items()})
            for i, (name, each) in enumerate(found.items())
        ]
    document: dict[str, Any] = {
        "made_by": f"python -m benchmarks.budgets.slices --seed {options.seed}",
        "top1": "predicted ImageNet top-1 with inherited weights, percent, 90 % interval",
        "slices": rows,
    }
    if errors:
        document["latency"] = {
            "what": f"ms of one call, batch 1, {options.threads} threads, measured",
            "machine": machine_name("cpu"),
            "versions": describe_versions("onnxruntime"),
            "standard_error_percent": {key: round(error, 2) for key, error in errors.items()},
        }
    write_whole(options.out, json.dumps(document, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['model']:18s} {row['name']:>5s} {row['top1_percent']:7.2f} %", row["latency_ms"]
        )


def find_slices(space: str, seed: int = 0) -> dict[str, Specialized]:
    """Return the best subnet of each size by the size's name, without those that gain nothing."""
    choices, found = Choices.of(space), dict[str, Specialized]()
    best = 0.0
    for size in SIZES[space]:
        each = choices.search(Bounds(max_params=size * 1e6), 1, seed)[0]
        if each.top1.value > best:
            best = each.top1.value
            found[slice_name(size)] = each
    return found


def slice_name(millions: float) -> str:
    """Return 15m for 15, and 5300k for 5.3: a dot would begin a tag."""
    return f"{millions:g}m" if float(millions).is_integer() else f"{round(1000 * millions)}k"


def _time(space: str, found: Sequence[Specialized], options: SliceOptions) -> dict[str, Timed]:
    if not options.seconds:
        return {}
    subnets = [each.subnet for each in found]
    return {
        f"{backend} {precision}": time_subnets(
            SPACES[space],
            RunSetting("cpu", backend, precision, 1, options.threads),
            subnets,
            options.seconds,
            fewest=None,
            max_noise_percent=math.inf,  # the file says how noisy it was
        )
        for backend, precision in SETTINGS
    }


def _row(model: str, name: str, each: Specialized, latency: dict[str, float]) -> dict[str, Any]:
    return {
        "model": model,
        "name": name,
        "subnet": each.subnet.to_dict(),
        "params": each.params,
        "macs": each.macs,
        "top1_percent": round(each.top1.value, 3),
        "top1_low": round(each.top1.low, 3),
        "top1_high": round(each.top1.high, 3),
        "extrapolated": each.top1.extrapolated,
        "latency_ms": {key: round(ms, 2) for key, ms in latency.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
