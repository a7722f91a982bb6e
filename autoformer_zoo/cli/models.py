"""The verbs `list` and `info`: what is known of the models, from the package's tables.

Architectures and accuracies come from `published.py`, costs from `network/complexity.py`, files
from `weights/sources.py`. Builds no network, and imports neither torch nor timm.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from autoformer_zoo.cli.command import PROGRAM
from autoformer_zoo.network.complexity import count_macs, count_params, official_complexity
from autoformer_zoo.published import MODELS, SPACES, Accuracy, WeightsSpec, find_model
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
        names = fnmatch.filter(MODELS, pattern)
        if not names:
            raise ValueError(f"no model matches {self.filter!r}; `{PROGRAM} list` shows all")
        infos = [describe(name) for name in names]
        if self.json:
            yield json.dumps([asdict(info) for info in infos])
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
            yield json.dumps(asdict(info))
        else:
            yield from _text(info)


@dataclass(frozen=True, slots=True)
class WeightsInfo:
    """One set of weights of a model, as `--json` prints it.

    Args:
        name: model.tag, as `create_model` takes it.
        source: address of the file, or that it comes with the package.
        page: where its authors describe it; None for the package's own.
        license: SPDX name, or that it is unknown and why.
        checked: what was verified on the file itself.
        published: accuracy stated by the authors, if any.
        measured: accuracy measured with this package, if any.
    """

    name: str
    source: str
    page: str | None
    license: str
    checked: str
    published: Accuracy | None
    measured: Accuracy | None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model of the registry, as `--json` prints it.

    Args:
        name: of the model, without a tag.
        depth: number of blocks; this and the next three are `SubnetConfig`'s fields.
        embed_dim: width of the residual stream.
        num_heads: attention heads of each block.
        mlp_ratio: hidden width of each block's MLP over `embed_dim`.
        img_size: input (height, width) in pixels.
        patch_size: patch side in pixels.
        num_classes: outputs of the head.
        params: number of parameters.
        macs: multiply-adds of one image in inference on the CPU, see `complexity.count_macs`.
        official_complexity: what the official code counts, for comparison only.
        weights: the sets of weights, the default first.
    """

    name: str
    depth: int
    embed_dim: int
    num_heads: Sequence[int]
    mlp_ratio: Sequence[float]
    img_size: tuple[int, int]
    patch_size: int
    num_classes: int
    params: int
    macs: int
    official_complexity: float
    weights: Sequence[WeightsInfo]


def describe(name: str) -> ModelInfo:
    """Gather what is known of a model.

    Args:
        name: a key of `MODELS`; with a tag, the model's other weights are left out.

    Raises:
        ValueError: no such model, or no such tag.
    """
    model, spec, tag = find_model(name)
    space = SPACES[spec.space]
    side = (space.img_size, space.img_size)
    sizes = (spec.subnet, side, space.patch_size, space.num_classes)
    return ModelInfo(
        name=model,
        **spec.subnet.to_dict(),
        img_size=side,
        patch_size=space.patch_size,
        num_classes=space.num_classes,
        params=count_params(*sizes),
        # The form that inference on the CPU takes by itself; asking for "auto" imports torch.
        macs=count_macs(*sizes, form="augmented"),
        official_complexity=official_complexity(*sizes),
        weights=[
            _weights_info(f"{model}.{known}", spec.weights[known])
            for known in ([tag] if tag else spec.weights)
        ],
    )


def _weights_info(name: str, weights: WeightsSpec) -> WeightsInfo:
    source = SOURCES[weights.source] if weights.source else None
    return WeightsInfo(
        name=name,
        source=source.url if source else "comes with the package",
        page=source.page if source else None,
        license=source.license_text if source else "mit",
        checked=source.verified if source else "trained and measured by this project",
        published=weights.published,
        measured=weights.measured,
    )


def _table(infos: Iterable[ModelInfo]) -> Iterator[str]:
    # Published and measured accuracy are two columns on purpose, see `published.py`.
    head = ("model", "params M", "MACs G", "input", "classes")
    rows = [(*head, "published %", "measured %", "weights")]
    for info in infos:
        height, width = info.img_size
        rows.append(
            (
                info.name,
                f"{info.params / 1e6:.1f}",
                f"{info.macs / 1e9:.2f}",
                f"{height}x{width}",
                str(info.num_classes),
                _first_top1(weights.published for weights in info.weights),
                _first_top1(weights.measured for weights in info.weights),
                ", ".join(weights.name.partition(".")[2] for weights in info.weights) or "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *numbers, tags in rows:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True)]
        yield "  ".join([name.ljust(widths[0]), *cells, tags])


def _first_top1(accuracies: Iterator[Accuracy | None]) -> str:
    return next((f"{a.top1_percent:.1f}" for a in accuracies if a is not None), "-")


def _text(info: ModelInfo) -> Iterator[str]:
    yield info.name
    yield from _fields(
        {
            "depth": str(info.depth),
            "embed_dim": str(info.embed_dim),
            "heads": " ".join(map(str, info.num_heads)),
            "mlp ratios": " ".join(f"{ratio:g}" for ratio in info.mlp_ratio),
            "input": f"{info.img_size[0]}x{info.img_size[1]}, patches of {info.patch_size}",
            "classes": str(info.num_classes),
            "parameters": f"{info.params:,}",
            "MACs": f"{info.macs:,}",
            "official count": f"{info.official_complexity:,.0f} (get_complexity, to compare only)",
        }
    )
    for weights in info.weights:
        yield f"weights {weights.name}"
        yield from _fields(
            {
                "published": _accuracy_text(weights.published),
                "measured": _accuracy_text(weights.measured),
                "license": weights.license,
                "source": weights.source,
                "page": weights.page or "-",
                "checked": weights.checked,
            }
        )
    if not info.weights:
        yield "weights: none of its own, give a file (--checkpoint)"


def _fields(values: Mapping[str, str]) -> Iterator[str]:
    width = max(map(len, values))
    return (f"  {key.ljust(width)}  {value}" for key, value in values.items())


def _accuracy_text(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "-"
    top5 = "" if accuracy.top5_percent is None else f", {accuracy.top5_percent:.1f} top-5"
    return f"{accuracy.top1_percent:.1f} top-1{top5} on {accuracy.dataset} ({accuracy.by})"
