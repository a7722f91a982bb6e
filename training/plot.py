"""Draw the curve of a run, and how its subnets do, as one SVG."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def plot_run(run: Path, results: dict[str, Any], out: Path) -> None:
    """Draw loss and held-out accuracy over training, and accuracy over parameters.

    Args:
        run: run directory with log.jsonl.
        results: what `training.choose` returned.
        out: picture to write; its ending says the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [line for line in log if "loss" in line]
    evaluations = [line for line in log if "held_out_acc1_percent" in line]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    for size in sorted({line["img_size"] for line in steps}):
        part = [line for line in steps if line["img_size"] == size]
        x = [line["step"] for line in part]
        left.plot(x, [line["loss"] for line in part], linewidth=0.8, label=f"{size} px")
    left.set(xlabel="step", ylabel="training loss, one subnet a step")
    left.legend()
    for which in ("smallest", "largest"):
        y = [line["held_out_acc1_percent"][which] for line in evaluations]
        middle.plot([line["step"] for line in evaluations], y, marker="o", label=which)
    middle.set(xlabel="step", ylabel="held-out top-1, %, at the stage's size")
    middle.legend()
    scored = results["held_out"]
    params = [each["params"] / 1e6 for each in scored]
    right.scatter(params, [each["acc1_percent"] for each in scored], s=10, label="candidates")
    best = results["params"] / 1e6, results["held_out_acc1_percent"]
    right.scatter(*best, marker="*", s=90, label="chosen")
    right.set(xlabel="parameters, M", ylabel="held-out top-1, %, 32 px")
    right.legend()
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
    plt.close(figure)
