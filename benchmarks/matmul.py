"""What the machine can do at best: a large matrix product, in the precision of the models.

The share of this peak that a model reaches says how much of its time is something else than
products. A figure of the machine at that moment, not of its data sheet.
"""

from __future__ import annotations

import torch

from benchmarks.timing import Plan, Stopwatch, measure

SIDE = {"cpu": 2048, "cuda": 8192}
PLAN = Plan(rounds=10, seconds=3.0, warmup=2, settle=0)


def peak_gflops(device: str, dtype: torch.dtype, stopwatch: Stopwatch) -> float:
    """Measure the fastest of a few large matrix products.

    Args:
        device: "cpu" or "cuda".
        dtype: of both factors.
        stopwatch: times one product.

    Returns:
        GFLOP/s, a multiply-add counted as two.
    """
    side = SIDE[device]
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    times = measure({"product": lambda: torch.mm(a, b, out=out)}, PLAN, stopwatch)
    return 2 * side**3 / min(times["product"]) / 1e6
