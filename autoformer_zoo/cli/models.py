"""What is known of a named model, put together from the package's tables; builds no network.

Architecture from `published.py`, costs from `complexity.py`, tags and data configs from
`autoformer.py`, files from `sources.py`, accuracies from `published.py`.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro
from timm.models import PretrainedCfg

from autoformer_zoo.autoformer import default_cfgs
from autoformer_zoo.classify.predictions import Prediction
from autoformer_zoo.cli.command import PROGRAM
from autoformer_zoo.network.complexity import count_macs, count_params, official_complexity
from autoformer_zoo.published import MODELS, SPACES, Accuracy, WeightsSpec, find_model
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.sources import SOURCES


@dataclass(frozen=True, slots=True)
class WeightsInfo:
    """One set of weights of a model.

    Args:
        name: model.tag, as `create_model` takes it.
        source: address of the file, or that it comes with the package.
        page: where its authors describe it; None for the package's own.
        license: SPDX name, or that it is unknown and why.
        checked: what was verified on the file itself.
        published: accuracy stated by the authors; None where they state none.
        measured: accuracy measured with this package; None where it was not.
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
    """One model of the registry.

    Args:
        name: of the model, without a tag.
        subnet: its architecture.
        img_size: input (height, width) in pixels.
        patch_size: patch side in pixels.
        num_classes: outputs of the head.
        params: number of parameters.
        macs: multiply-adds of one image, see `complexity.count_macs`.
        official_complexity: what the official code counts, for comparison only.
        weights: the sets of weights, the default first.
    """

    name: str
    subnet: SubnetConfig
    img_size: tuple[int, int]
    patch_size: int
    num_classes: int
    params: int
    macs: int
    official_complexity: float
    weights: tuple[WeightsInfo, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "subnet"}
        values["img_size"] = list(self.img_size)
        values["weights"] = [asdict(weights) for weights in self.weights]
        return {"name": self.name, **self.subnet.to_dict(), **values}


def known_models() -> tuple[str, ...]:
    """Return the names of all models, family by family, small ones first."""
    return tuple(MODELS)


def describe(name: str) -> ModelInfo:
    """Gather what is known of a model.

    Args:
        name: one of `known_models`, or one with a tag, which leaves the other weights out.

    Raises:
        ValueError: no such model, or no such tag.
    """
    model, spec, tag = find_model(name)
    cfg = default_cfgs[model].default
    subnet, patch_size = spec.subnet, SPACES[spec.space].patch_size
    img_size = (int(cfg.input_size[1]), int(cfg.input_size[2]))
    return ModelInfo(
        name=model,
        subnet=subnet,
        img_size=img_size,
        patch_size=patch_size,
        num_classes=cfg.num_classes,
        params=count_params(subnet, img_size, patch_size, cfg.num_classes),
        macs=count_macs(subnet, img_size, patch_size, cfg.num_classes),
        official_complexity=official_complexity(subnet, img_size, patch_size, cfg.num_classes),
        weights=tuple(
            _weights_info(f"{model}.{key}", spec.weights[key], default_cfgs[model].cfgs[key])
            for key in ([tag] if tag else spec.weights)
        ),
    )


def _weights_info(name: str, weights: WeightsSpec, cfg: PretrainedCfg) -> WeightsInfo:
    source = SOURCES.get(weights.source or "")
    return WeightsInfo(
        name=name,
        source=source.url if source else "comes with the package",
        page=source.page if source else None,
        license=source.license_text if source else str(cfg.license or "unknown"),
        checked=source.verified if source else "trained and measured by this project",
        published=weights.published,
        measured=weights.measured,
    )


@dataclass(frozen=True, slots=True)
class List:
    """List the models: size, input, accuracy."""

    filter: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILTER")] = "*"
    """Part of a name, or a pattern with * and ?."""
    json: bool = False
    """Print one JSON array instead of a table."""

    def run(self) -> Iterator[str]:
        """Yield the table, or the JSON array."""
        pattern = self.filter if set(self.filter) & set("*?[") else f"*{self.filter}*"
        names = [name for name in known_models() if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            raise ValueError(f"no model matches {self.filter!r}; `{PROGRAM} list` has them all")
        infos = [describe(name) for name in names]
        if self.json:
            yield json.dumps([info.to_dict() for info in infos])
        else:
            yield from list_lines(infos)


@dataclass(frozen=True, slots=True)
class Info:
    """Show one model: architecture, cost, accuracy, license, source."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """A model of `list`, with or without a tag (autoformer_tiny.ms_in1k)."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> Iterator[str]:
        """Yield the description, or the JSON object."""
        info = describe(self.name)
        if self.json:
            yield json.dumps(info.to_dict())
        else:
            yield from info_lines(info)


_COSTS = ("params M", "MACs G", "input", "classes")


_TOP1 = ("published %", "measured %")  # apart on purpose, see `published.py`


_LIST_HEAD = ("model", *_COSTS, *_TOP1, "weights")


def answer_lines(answers: Iterable[list[Prediction]]) -> Iterator[str]:
    """Give each image and, below it, its answers."""
    for predictions in answers:
        yield predictions[0].image
        for p in predictions:
            yield f"  {100 * p.probability:5.1f} %  {p.label}"


def list_lines(infos: Iterable[ModelInfo]) -> Iterator[str]:
    """Give a table, a model a line."""
    return _table(_LIST_HEAD, [_list_row(info) for info in infos])


def info_lines(info: ModelInfo) -> Iterator[str]:
    """Give all that is known of a model."""
    subnet = info.subnet
    yield info.name
    yield from _fields(
        {
            "depth": str(subnet.depth),
            "embed_dim": str(subnet.embed_dim),
            "heads": " ".join(map(str, subnet.num_heads)),
            "mlp ratios": " ".join(f"{ratio:g}" for ratio in subnet.mlp_ratio),
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


def _list_row(info: ModelInfo) -> tuple[str, ...]:
    height, width = info.img_size
    return (
        info.name,
        f"{info.params / 1e6:.1f}",
        f"{info.macs / 1e9:.2f}",
        f"{height}x{width}",
        str(info.num_classes),
        _first_top1(w.published for w in info.weights),
        _first_top1(w.measured for w in info.weights),
        ", ".join(w.name.partition(".")[2] for w in info.weights) or "-",
    )


def _first_top1(accuracies: Iterator[Accuracy | None]) -> str:
    return next((f"{a.top1_percent:.1f}" for a in accuracies if a is not None), "-")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    last = len(head) - 1
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if i in (0, last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _fields(values: Mapping[str, str]) -> Iterator[str]:
    width = max(map(len, values))
    return (f"  {key.ljust(width)}  {value}" for key, value in values.items())


def _accuracy_text(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "-"
    top5 = "" if accuracy.top5_percent is None else f", {accuracy.top5_percent:.1f} top-5"
    return f"{accuracy.top1_percent:.1f} top-1{top5} on {accuracy.dataset} ({accuracy.by})"
