"""Draw a search: the front of accuracy over cost, and how the population moved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

LABELS = {"params": ("parameters, M", 1e6), "macs": ("multiply-adds, M", 1e6)}


def plot_search(result: Mapping[str, Any], out: Path) -> None:
    """Draw a search.

    Args:
        result: content of search.json.
        out: picture to write; its ending says the format.
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
