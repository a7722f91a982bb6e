"""Draw the curve of a run, and how its subnets do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from training.run_directory import HELD_OUT, LOG, read_log

CURVE = "curve.svg"


def plot_curve(run: Path) -> Path:
    """Draw loss and held-out accuracy over training into the run directory; returns the file."""
    figure, (left, right) = _figure(2)
    _draw_log(run, left, right)
    return _save(figure, run / CURVE)


def plot_run(run: Path, results: dict[str, Any], out: Path) -> None:
    """Draw loss and held-out accuracy over training, and accuracy over parameters.

    Args:
        run: run directory with log.jsonl.
        results: what `training.choose` returned.
        out: picture to write; its ending says the format.
    """
    figure, (left, middle, right) = _figure(3)
    _draw_log(run, left, middle)
    scored = results["held_out"]
    params = [each["params"] / 1e6 for each in scored]
    right.scatter(params, [each["acc1_percent"] for each in scored], s=10, label="candidates")
    best = results["params"] / 1e6, results["held_out_acc1_percent"]
    right.scatter(*best, marker="*", s=90, label="chosen")
    right.set(xlabel="parameters, M", ylabel="held-out top-1, %, 32 px")
    right.legend()
    _save(figure, out)


def _figure(columns: int) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(1, columns, figsize=(4 * columns, 3.4), layout="constrained")


def _draw_log(run: Path, left: Any, right: Any) -> None:
    log = read_log(run / LOG)
    steps = [line for line in log if "loss" in line]
    evaluations = [line for line in log if HELD_OUT in line]
    for size in sorted({line["img_size"] for line in steps}):
        part = [line for line in steps if line["img_size"] == size]
        x = [line["step"] for line in part]
        left.plot(x, [line["loss"] for line in part], linewidth=0.8, label=f"{size} px")
    left.set(xlabel="step", ylabel="training loss")
    if steps:
        left.legend()
    for which in evaluations[-1][HELD_OUT] if evaluations else ():
        y = [line[HELD_OUT][which] for line in evaluations]
        right.plot([line["step"] for line in evaluations], y, marker="o", label=which)
    right.set(xlabel="step", ylabel="held-out top-1, %, at the stage's size")
    if evaluations:
        right.legend()


def _save(figure: Any, out: Path) -> Path:
    from matplotlib import pyplot as plt

    temporary = out.with_name(f"{out.stem}.tmp{out.suffix}")
    figure.savefig(temporary, metadata={"Date": None} if out.suffix == ".svg" else None)
    plt.close(figure)
    os.replace(temporary, out)
    return out
