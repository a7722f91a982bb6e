"""Draw the curve of a run, and how its subnets do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.run.directory import HELD_OUT, LOG, read_log

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
        out: image to write; its ending says the format.
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


LABELS = {"params": ("parameters, M", 1e6), "macs": ("multiply-adds, M", 1e6)}


def plot_search(result: Mapping[str, Any], out: Path) -> None:
    """Draw a search.

    Args:
        result: content of search.json.
        out: image to write; its ending says the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    with plt.rc_context({"svg.hashsalt": "search"}):  # the same search, the same file
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
        candidates = result["candidates"]
        generations = [each["generation"] for each in candidates]
        scores = [each["score"] for each in candidates]
        label, unit = LABELS[result["front_cost"]]
        costs = [each[result["front_cost"]] / unit for each in candidates]
        dots = left.scatter(costs, scores, c=generations, s=9, cmap="viridis")
        front = result["front"]
        x, y = [costs[i] for i in front], [scores[i] for i in front]
        left.step(x, y, where="post", color="tab:red", linewidth=1, label="front")
        best = result["best"]
        left.scatter(costs[best], scores[best], marker="*", s=110, color="tab:red", label="winner")
        left.set(xlabel=label, ylabel="held-out top-1, %, inherited weights")
        left.legend(loc="lower right")
        whole = ticker.MaxNLocator(integer=True)
        figure.colorbar(dots, ax=left, label="generation", ticks=whole)
        groups = [
            [s for s, g in zip(scores, generations, strict=True) if g == n]
            for n in range(max(generations) + 1)
        ]
        right.boxplot(
            groups, positions=range(len(groups)), widths=0.6, flierprops={"markersize": 3}
        )
        highest = [max(s for group in groups[: n + 1] for s in group) for n in range(len(groups))]
        right.plot(range(len(groups)), highest, color="tab:red", linewidth=1, label="best so far")
        right.set(xlabel="generation", ylabel="held-out top-1, %")
        right.set_xticks(range(0, len(groups), max(1, len(groups) // 10)))
        right.set_xticklabels(range(0, len(groups), max(1, len(groups) // 10)))
        right.legend(loc="lower right")
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
        plt.close(figure)
