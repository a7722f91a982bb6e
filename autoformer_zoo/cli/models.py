"""The verbs `list` and `info`: descriptions of the models, from the package's tables.

Architectures and accuracies come from `published.py`, costs from `network/complexity.py`, files
from `weights/sources.py`. Builds no network, and imports neither torch nor timm.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from autoformer_zoo.cli.command import PROGRAM
from autoformer_zoo.network.complexity import count_macs, count_params, official_complexity
from autoformer_zoo.published import MODELS, SPACES, WeightsSpec, find_model
from autoformer_zoo.specialization.slices import Slice, load_slices
from autoformer_zoo.weights.sources import SOURCES


@dataclass(frozen=True, slots=True)
class List:
    """List the models with their size, input and accuracy."""

    filter: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[FILTER]")] = "*"
    """List only models whose name contains this, or matches it with * and ?."""
    json: bool = False
    """Print one JSON array instead of a table."""

    def run(self) -> Iterator[str]:
        """Yield the table, or the JSON array."""
        pattern = self.filter if set(self.filter) & set("*?[") else f"*{self.filter}*"
        names = fnmatch.filter([*MODELS, *load_slices()], pattern)
        if not names:
            raise ValueError(f"no model matches {self.filter!r}; `{PROGRAM} list` shows all")
        infos = [describe(name) for name in names]
        if self.json:
            yield json.dumps(infos)
        else:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            yield from (line[:width] for line in _table(infos))


@dataclass(frozen=True, slots=True)
class Info:
    """Show one model: architecture, cost, accuracy, license, source."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """A model that `list` shows, with or without a tag (autoformer_tiny.ms_in1k)."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> Iterator[str]:
        """Yield the description, or the JSON object."""
        info = describe(self.name)
        if self.json:
            yield json.dumps(info)
        else:
            yield from _text(info)


def describe(name: str) -> dict[str, Any]:
    """Return the description of a model that `--json` prints.

    Args:
        name: a key of `MODELS`, or a slice; with a tag, the model's other weights are left out.

    Returns:
        Name, architecture (`SubnetConfig`'s fields), input size, classes, costs, "predicted" (of
        slices: top-1 and measured latencies), and "weights", a list of sets of weights, the
        default first. "official_complexity" is what the official code
        counts, for comparison only.

    Raises:
        ValueError: no such model, or no such tag.
    """
    sliced = load_slices().get(name.partition(".")[0])
    base = name if sliced is None else name.replace(sliced.full_name, sliced.model)
    model, spec, tag = find_model(base)
    subnet = spec.subnet if sliced is None else sliced.subnet
    space = SPACES[spec.space]
    side = (space.img_size, space.img_size)
    sizes = (subnet, side, space.patch_size, space.num_classes)
    return {
        "name": model if sliced is None else sliced.full_name,
        **subnet.to_dict(),
        "img_size": side,
        "patch_size": space.patch_size,
        "num_classes": space.num_classes,
        "params": count_params(*sizes),
        # The form that inference on the CPU takes by itself; asking for "auto" imports torch.
        "macs": count_macs(*sizes, form="augmented"),
        "official_complexity": official_complexity(*sizes),
        "predicted": sliced and _describe_prediction(sliced),
        "weights": [
            _describe_weights(f"{model}.{known}", spec.weights[known], is_whole=sliced is None)
            for known in ([tag] if tag else spec.weights)
            if sliced is None or _holds_supernet(spec.weights[known])
        ],
    }


def _holds_supernet(weights: WeightsSpec) -> bool:
    """Return True if subnets can be cut from these weights."""
    return not weights.source or SOURCES[weights.source].kind == "supernet"


def _describe_prediction(sliced: Slice) -> dict[str, Any]:
    names = ("top1_percent", "top1_low", "top1_high", "extrapolated", "latency_ms")
    return {name: getattr(sliced, name) for name in names}


def _describe_weights(name: str, weights: WeightsSpec, is_whole: bool) -> dict[str, Any]:
    source = SOURCES[weights.source] if weights.source else None
    return {
        "name": name,
        "source": source.url if source else "comes with the package",
        "page": source.page if source else None,
        "license": source.license_text if source else "mit",
        "checked": source.verified if source else "trained and measured by this project",
        # Accuracies of the model's own subnet are none of a slice.
        "published": asdict(weights.published) if weights.published and is_whole else None,
        "measured": asdict(weights.measured) if weights.measured and is_whole else None,
    }


def _table(infos: Iterable[dict[str, Any]]) -> Iterator[str]:
    # Published, measured and predicted accuracy are columns of their own, see `published.py`.
    head = ("model", "params M", "MACs G", "input", "classes")
    rows = [(*head, "published %", "measured %", "predicted %", "weights")]
    for info in infos:
        weights = info["weights"]
        rows.append(
            (
                info["name"],
                f"{info['params'] / 1e6:.1f}",
                f"{info['macs'] / 1e9:.2f}",
                "x".join(map(str, info["img_size"])),
                str(info["num_classes"]),
                _first_top1(each["published"] for each in weights),
                _first_top1(each["measured"] for each in weights),
                _first_top1([info["predicted"]]),
                ", ".join(each["name"].partition(".")[2] for each in weights) or "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *numbers, tags in rows:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True)]
        yield "  ".join([name.ljust(widths[0]), *cells, tags])


def _first_top1(accuracies: Iterable[dict[str, Any] | None]) -> str:
    return next((f"{found['top1_percent']:.1f}" for found in accuracies if found), "-")


def _text(info: dict[str, Any]) -> Iterator[str]:
    height, width = info["img_size"]
    yield info["name"]
    yield from _fields(
        {
            "depth": info["depth"],
            "embed_dim": info["embed_dim"],
            "heads": " ".join(map(str, info["num_heads"])),
            "mlp ratios": " ".join(f"{ratio:g}" for ratio in info["mlp_ratio"]),
            "input": f"{height}x{width}, patches of {info['patch_size']}",
            "classes": info["num_classes"],
            "parameters": f"{info['params']:,}",
            "MACs": f"{info['macs']:,}",
            "official count": f"{info['official_complexity']:,.0f} (get_complexity, to compare)",
            **_prediction_text(info["predicted"]),
        }
    )
    for weights in info["weights"]:
        yield f"weights {weights['name']}"
        yield from _fields(
            {
                "published": _accuracy_text(weights["published"]),
                "measured": _accuracy_text(weights["measured"]),
                "license": weights["license"],
                "source": weights["source"],
                "page": weights["page"] or "-",
                "checked": weights["checked"],
            }
        )
    if not info["weights"]:
        yield "weights: none of its own, give a file (--checkpoint)"


def _prediction_text(predicted: dict[str, Any] | None) -> dict[str, str]:
    if predicted is None:
        return {}
    top1, low, high = (predicted[name] for name in ("top1_percent", "top1_low", "top1_high"))
    times = ", ".join(f"{ms:g} ms {setting}" for setting, ms in predicted["latency_ms"].items())
    return {
        "predicted": f"{top1:.2f} top-1, 90 % interval {low:.2f} to {high:.2f}",
        "latency": times or "-",
    }


def _fields(values: Mapping[str, object]) -> Iterator[str]:
    width = max(map(len, values))
    return (f"  {key.ljust(width)}  {value}" for key, value in values.items())


def _accuracy_text(accuracy: dict[str, Any] | None) -> str:
    if accuracy is None:
        return "-"
    top1, top5 = accuracy["top1_percent"], accuracy["top5_percent"]
    shown = f"{top1:.1f} top-1" if top5 is None else f"{top1:.1f} top-1, {top5:.1f} top-5"
    return f"{shown} on {accuracy['dataset']} ({accuracy['by']})"
