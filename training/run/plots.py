"""Figures of runs and searches: one row of axes, drawn without a display.

The same numbers give the same file, so that a figure in the repository changes only with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.run.directory import HELD_OUT, LOG, read_config, read_log, write_atomic

CURVE = "curve.svg"
COSTS = {"params": ("parameters, M", 1e6), "macs": ("multiply-adds, M", 1e6)}


@contextmanager
def figure(
    out: Path, columns: int, width: float = 4, height: float = 3.4, rows: int = 1
) -> Iterator[list[Any]]:
    """Yield axes to draw on, row by row, and write the figure when the block ends.

    Args:
        out: image to write; its suffix is the format.
        columns: number of axes, side by side.
        width: of each, in inches.
        height: of each, in inches.
        rows: number of rows of axes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # Ids of an SVG are random otherwise; a class name may have dollar signs.
    with matplotlib.rc_context({"svg.hashsalt": "autoformer_zoo", "text.parse_math": False}):
        drawn = Figure((width * columns, height * rows), layout="constrained")
        yield list(drawn.subplots(rows, columns, squeeze=False).flat)
        with write_atomic(out) as temporary:
            drawn.savefig(temporary, metadata={"Date": None} if out.suffix == ".svg" else None)


def plot_curve(run: Path) -> Path:
    """Draw loss and held-out accuracy over training into the run directory; returns the file."""
    with figure(run / CURVE, 2) as (left, right):
        _draw_log(run, left, right)
    return run / CURVE


def plot_run(run: Path, results: Mapping[str, Any], out: Path) -> None:
    """Draw loss and held-out accuracy over training, and accuracy over parameters.

    Args:
        run: run directory with config.json and log.jsonl.
        results: what `training.search.choose` returned.
        out: image to write; its suffix is the format.
    """
    with figure(out, 3) as (left, middle, right):
        _draw_log(run, left, middle)
        scored = results["held_out"]
        params = [candidate["params"] / 1e6 for candidate in scored]
        accuracies = [candidate["acc1_percent"] for candidate in scored]
        right.scatter(params, accuracies, s=10, label="candidates")
        best = results["params"] / 1e6, results["held_out_acc1_percent"]
        right.scatter(*best, marker="*", s=90, label="chosen")
        size = read_config(run).largest_size
        right.set(xlabel="parameters, M", ylabel=f"held-out top-1, %, {size} px")
        right.legend()


def plot_confusion(counts: Sequence[Sequence[int]], names: Sequence[str], out: Path) -> None:
    """Draw how many images of each class were taken for each class.

    Args:
        counts: images by class and predicted class.
        names: of the classes.
        out: image to write; its suffix is the format.
    """
    side = 2 + 0.35 * len(names)
    with figure(out, 1, side, side) as (axes,):
        shares = [[count / max(1, sum(row)) for count in row] for row in counts]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                if count:
                    color = "white" if shares[i][j] > 0.5 else "black"
                    axes.text(j, i, count, ha="center", va="center", size=7, color=color)
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="predicted", ylabel="class of the image")


def plot_images(images: Sequence[Any], titles: Sequence[str], out: Path) -> None:
    """Draw images with their titles on one sheet.

    Args:
        images: float arrays (height, width, 3), from 0 to 1.
        titles: one each.
        out: image to write; its suffix is the format.
    """
    columns = min(6, len(images))
    with figure(out, columns, 1.6, 2, -(-len(images) // columns)) as axes:
        for place in axes:
            place.axis("off")
        for place, image, title in zip(axes, images, titles, strict=False):
            place.imshow(image, interpolation="nearest")
            place.set_title(title, size=7)


def plot_search(result: Mapping[str, Any], out: Path) -> None:
    """Draw a search: accuracy over cost with the front, and accuracy over generations.

    Args:
        result: content of search.json.
        out: image to write; its suffix is the format.
    """
    candidates = result["candidates"]
    scores = [candidate["score"] for candidate in candidates]
    generations = [candidate["generation"] for candidate in candidates]
    groups = [
        [score for score, other in zip(scores, generations, strict=True) if other == generation]
        for generation in range(max(generations) + 1)
    ]
    with figure(out, 2, 5.5, 3.8) as (left, right):
        _draw_front(result, scores, generations, left)
        _draw_generations(groups, right)


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


def _draw_front(
    result: Mapping[str, Any], scores: Sequence[float], generations: Sequence[int], axes: Any
) -> None:
    from matplotlib.ticker import MaxNLocator

    label, unit = COSTS[result["front_cost"]]
    costs = [candidate[result["front_cost"]] / unit for candidate in result["candidates"]]
    dots = axes.scatter(costs, scores, c=generations, s=9, cmap="viridis")
    front, best = result["front"], result["best"]
    x, y = [costs[i] for i in front], [scores[i] for i in front]
    axes.step(x, y, where="post", color="tab:red", linewidth=1, label="front")
    axes.scatter(costs[best], scores[best], marker="*", s=110, color="tab:red", label="winner")
    axes.set(xlabel=label, ylabel="held-out top-1, %, inherited weights")
    axes.legend(loc="lower right")
    whole = MaxNLocator(integer=True)
    axes.figure.colorbar(dots, ax=axes, label="generation", ticks=whole)


def _draw_generations(groups: Sequence[Sequence[float]], axes: Any) -> None:
    positions = range(len(groups))
    axes.boxplot(groups, positions=positions, widths=0.6, flierprops={"markersize": 3})
    best = [max(max(group) for group in groups[: n + 1]) for n in positions]
    axes.plot(positions, best, color="tab:red", linewidth=1, label="best so far")
    axes.set(xlabel="generation", ylabel="held-out top-1, %")
    ticks = positions[:: max(1, len(groups) // 10)]
    axes.set_xticks(ticks, ticks)
    axes.legend(loc="lower right")
