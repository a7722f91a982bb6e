"""Plots from rows, as SVG: attention over tokens, accuracy over latency, regret of searches.

The same rows give the same bytes with the same matplotlib. Each file carries a digest of its rows,
so that `python -m benchmarks.report --check` finds a stale one with any version of matplotlib, and
without drawing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from autoformer_zoo.weights.whole_files import complete_file
from benchmarks import attention, search
from benchmarks.measure.results import read_rows, to_columns
from benchmarks.measure.rows import Row
from benchmarks.report.tables import FORMS, PARETO, caption, published_top1, to_frame

DIGEST = re.compile(r"rows sha256 ([0-9a-f]{64})")
STYLE: Mapping[Any, Any] = {  # matplotlib names every key in its annotation
    "svg.hashsalt": "autoformer_zoo",  # otherwise ids are random
    "svg.fonttype": "none",  # text stays text
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
INPUT = r"(?P<height>\d+)x(?P<width>\d+) grid, (?P<heads>\d+) heads"
FAMILIES = {"autoformer": "o", "prenas": "s", "deit": "^"}  # markers


def rows_of_plot(name: str, results: Path) -> list[Row]:
    """Return the rows of a name in `PLOTS`, of the machine measured last.

    Raises:
        ValueError: the file is refused.
    """
    file, device, _ = PLOTS[name]
    rows = [row for row in read_rows(results / f"{file}.csv") if row.device == device]
    if not rows:
        return []
    newest = max(rows, key=lambda row: row.date).machine
    return [row for row in rows if row.machine == newest]


def draw_plot(name: str, rows: Sequence[Row], out: Path) -> None:
    """Draw a name in `PLOTS` from its rows; the file appears when it is complete."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with matplotlib.rc_context(dict(STYLE)), complete_file(out) as temporary:
        figure = PLOTS[name][2](plt, rows)
        figure.text(0.01, -0.02, caption(to_frame(rows)), fontsize=6, va="top", wrap=True)
        about = {"Date": None, "Source": f"rows sha256 {digest(rows)}"}
        try:
            figure.savefig(temporary, format="svg", metadata=about, bbox_inches="tight")
        finally:
            plt.close(figure)


def is_stale(rows: Sequence[Row], out: Path) -> bool:
    """Return True if a plot is missing, or was drawn from other rows."""
    found = DIGEST.search(out.read_text(encoding="utf-8")) if out.exists() else None
    return found is None or found[1] != digest(rows)


def digest(rows: Sequence[Row]) -> str:
    """Return the SHA-256 of rows."""
    cells = [tuple(to_columns(row).values()) for row in rows]
    return hashlib.sha256(repr(cells).encode()).hexdigest()


def _draw_attention(plt: Any, rows: Sequence[Row]) -> Any:  # pyplot and its figure: not annotated
    """Draw time and memory over tokens, for the middle number of heads."""
    frame = to_frame(rows)
    sizes = frame.input.str.extract(INPUT).astype(int)
    heads = sorted(sizes.heads.unique())
    chosen = heads[len(heads) // 2]
    frame = frame.assign(tokens=1 + sizes.height * sizes.width)
    frame = frame[(sizes.heads == chosen) & (frame.value > 0)].sort_values("tokens")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    estimated_look = {"linestyle": "none", "markerfacecolor": "none"}
    for axis, what, label in zip(
        axes, ("latency", "peak_memory"), ("ms", "MiB beyond the operands"), strict=True
    ):
        for number, form in enumerate(FORMS):
            points = frame[(frame.what == what) & (frame.model == form)]
            for was_run, look in ((True, {"label": form}), (False, estimated_look)):
                some = points[(points.repeats > 0) == was_run]
                if len(some):
                    style = {"marker": "o", "markersize": 4, "color": f"C{number}", **look}
                    axis.plot(some.tokens, some.value, **style)
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
    axes[0].set_title(f"one layer's attention, {chosen} heads, {rows[0].precision}", fontsize=9)
    axes[1].set_title("hollow: estimated, above the limit, not run", fontsize=9)
    axes[0].legend(fontsize=8)
    return figure


def _draw_pareto(plt: Any, rows: Sequence[Row]) -> Any:
    frame = to_frame(rows)
    batch = frame.batch.min()
    frame = frame[(frame.batch == batch) & (frame.what == "latency")]
    frame = frame.assign(top1=frame.model.map(published_top1())).dropna(subset="top1")
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for family, marker in FAMILIES.items():
        points = frame[frame.model.str.startswith(family)].sort_values("value")
        axis.plot(points.value, points.top1, marker=marker, linewidth=0.8, label=family)
        for point in points.itertuples():
            axis.annotate(
                point.model.removesuffix("_patch16_224"),
                (point.value, point.top1),
                xytext=(4, 5 if family == "prenas" else -9),  # its points are on AutoFormer's
                textcoords="offset points",
                fontsize=6,
            )
    axis.margins(x=0.15)
    axis.set(
        xscale="log",
        xlabel=f"ms, median, batch {batch}, measured here",
        ylabel="ImageNet top-1 %, published, not measured here",
    )
    axis.legend(fontsize=8)
    return figure


def _draw_search(plt: Any, rows: Sequence[Row]) -> Any:
    """Draw regret over evaluations: a panel for each space and source of accuracies."""
    frame = to_frame(rows)
    frame = frame[frame.what == "regret"]
    panels = list(dict.fromkeys(frame.input))
    size = (3 * len(panels), 3.2)
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for method in dict.fromkeys(frame.model):
            line = frame[(frame.input == panel) & (frame.model == method)].sort_values("batch")
            axis.plot(line.batch, line.value, marker="o", markersize=3, label=method)
            axis.fill_between(line.batch, line.low, line.high, alpha=0.12)
        axis.set(xscale="log", ylim=(0, None), xlabel="evaluations")
        axis.set_title(panel, fontsize=9)
    axes[0][0].set_ylabel("points below the best, median and 80 % of runs")
    axes[0][-1].legend(fontsize=7)
    return figure


Draw = Callable[[Any, Sequence[Row]], Any]

PLOTS: Mapping[str, tuple[str, str, Draw]] = MappingProxyType(
    {
        f"{name}-{device}": (file, device, draw)
        for device in ("cpu", "cuda")
        for name, file, draw in (
            ("attention", attention.NAME, _draw_attention),
            ("pareto", PARETO, _draw_pareto),
            ("search", search.NAME, _draw_search),
        )
    }
)
"""Names of the plots: the file of rows, the device, and the function that draws."""
