"""The front of predicted accuracy against a cost, beside the published networks.

The published AutoFormer, PreNAS and DeiT networks are timed as the profile's subnets were; their
accuracies are those that their authors state, of retrained weights in DeiT's case.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from autoformer_zoo.network.complexity import count_params
from autoformer_zoo.published import MODELS
from autoformer_zoo.specialization.constraints import INFINITE, Bounds, reachable
from autoformer_zoo.specialization.evolution import pareto_front
from autoformer_zoo.specialization.latency.profile import LatencyProfile, RunSetting
from autoformer_zoo.specialization.selection import Choices, Specialized

BUDGETS = 16  # of a front, spread evenly over what the space reaches
# Published ImageNet top-1 in percent, arXiv 2012.12877, table 5: without distillation, at 224 px.
DEIT = {
    "tiny": ("deit_tiny_patch16_224", 72.2),
    "small": ("deit_small_patch16_224", 79.8),
    "base": ("deit_base_patch16_224", 81.8),
}
LABELS = {"latency_ms": "latency of one call, ms", "params": "parameters, M"}


@dataclass(frozen=True, slots=True)
class KnownPoint:
    """A published network.

    Args:
        name: of the model.
        top1_percent: as its authors state.
        params: number of parameters.
        latency_ms: measured here; None if it was not.
    """

    name: str
    top1_percent: float
    params: int
    latency_ms: float | None


def find_front(
    choices: Choices, cost: str, seed: int = 0, highest: float = INFINITE
) -> list[Specialized]:
    """Search under budgets from the smallest to the largest cost.

    Args:
        choices: the space, and its costs.
        cost: "latency_ms" or "params".
        seed: of the searches.
        highest: largest budget; what the space reaches by default.

    Returns:
        Subnets that no other found one beats, cheapest first.

    Raises:
        ValueError: no subnet is within `highest`; the text has the range that can be reached.
    """
    (bounded,) = (each for each in choices.costs if each.name == cost)
    low, high = reachable(choices.space, bounded)
    high = min(high, highest)
    found = [
        choices.search(Bounds(**{f"max_{cost}": float(budget)}), 1, seed)[0]
        for budget in np.linspace(low, high, BUDGETS)
    ]
    points = [(bounded.value(each.subnet), each.top1.value) for each in found]
    return [found[i] for i in pareto_front(points)]


def known_points(
    space: str, choices: Choices, setting: RunSetting | None, progress: bool = False
) -> list[KnownPoint]:
    """Return the published networks of a space's size, timed here if there is a setting.

    Args:
        space: name of the space.
        choices: the space, and its costs.
        setting: how they run; None to time none.
        progress: show a progress bar.
    """
    stated = {
        name: weights.published.top1_percent
        for name, spec in MODELS.items()
        if spec.space == space
        for weights in itertools.islice(spec.weights.values(), 1)
        if weights.published
    }
    stated.update([DEIT[space]] if space in DEIT else [])
    latency: dict[str, float] = {}
    if setting is not None and stated:
        from autoformer_zoo.specialization.latency.measure import time_models

        latency = time_models(choices.space, setting, list(stated), progress=progress)
    return [
        KnownPoint(name, top1, _params_of(name), latency.get(name)) for name, top1 in stated.items()
    ]


def _params_of(name: str) -> int:
    if name in MODELS:
        return count_params(name)
    import timm
    import torch

    with torch.device("meta"):
        model = timm.create_model(name)
    return sum(parameter.numel() for parameter in model.parameters())


def require_matplotlib() -> None:
    """Raise ValueError if plots cannot be drawn."""
    if find_spec("matplotlib") is None:
        raise ValueError("a plot needs matplotlib: pip install matplotlib")


def draw_front(
    path: Path,
    front: Sequence[Specialized],
    known: Sequence[KnownPoint],
    cost: str,
    profile: LatencyProfile | None,
    measured: Sequence[float] = (),
    images: str = "ImageNet",
) -> list[dict[str, Any]]:
    """Draw a front and write its figures beside the plot, as FILE.csv.

    Args:
        path: .png or .svg.
        front: what `find_front` returned.
        known: published networks; those without the cost are in the table only.
        cost: of the horizontal axis, "latency_ms" or "params".
        profile: where latencies come from.
        measured: top-1 of the front's subnets in percent, if it was measured, too.
        images: name of the images that accuracies are of.

    Returns:
        The rows of the table.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from autoformer_zoo.weights.whole_files import write_whole

    unit = 1e6 if cost == "params" else 1.0
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    costs = [getattr(each, cost) / unit for each in front]
    axes.plot(costs, [each.top1.value for each in front], "o-", label="found here (predicted)")
    lows, highs = [each.top1.low for each in front], [each.top1.high for each in front]
    axes.fill_between(costs, lows, highs, alpha=0.2, label="90 % interval")
    markers = {"autoformer": "o", "prenas": "s", "deit": "^"}
    if measured:
        axes.plot(costs, measured, "x", label="measured")
    for point in known:
        value = getattr(point, cost)
        if value is not None:
            marker = markers[point.name.partition("_")[0]]
            axes.plot(value / unit, point.top1_percent, marker, label=f"{point.name} (published)")
    axes.set_xlabel(LABELS[cost])
    axes.set_ylabel(f"{images} top-1, %")
    if cost == "latency_ms" and profile is not None:
        axes.set_title(f"{profile.machine}: {profile.setting}", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    temporary = path.with_name(f".{path.name}{path.suffix}")
    # The same front gives the same file: ids and the date of an SVG would differ.
    metadata = {"Date": None} if path.suffix == ".svg" else None
    try:
        with matplotlib.rc_context({"svg.hashsalt": "autoformer_zoo"}):
            figure.savefig(temporary, dpi=150, metadata=metadata)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    rows = _rows(front, known)
    for row, value in zip(rows, measured, strict=False):
        row["measured_top1_percent"] = round(value, 3)
    write_whole(path.with_suffix(".csv"), _csv(rows))
    return rows


def _rows(front: Sequence[Specialized], known: Sequence[KnownPoint]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "name": f"front {i}",
            "top1_kind": "predicted",
            "top1_percent": round(each.top1.value, 3),
            "low": round(each.top1.low, 3),
            "high": round(each.top1.high, 3),
            "extrapolated": each.top1.extrapolated,
            "params": each.params,
            "macs": each.macs,
            "latency_ms": each.latency_ms,
            "subnet": each.subnet.to_json(),
        }
        for i, each in enumerate(front, start=1)
    ]
    for point in known:
        spec = MODELS.get(point.name)
        rows.append(
            {
                **dict.fromkeys(rows[0], ""),
                "name": point.name,
                "top1_kind": "published",
                "top1_percent": point.top1_percent,
                "params": point.params,
                "latency_ms": "" if point.latency_ms is None else round(point.latency_ms, 3),
                "subnet": spec.subnet.to_json() if spec else "",
            }
        )
    return rows


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
