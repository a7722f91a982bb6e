"""Text for terminals: the tables and descriptions that `cli.py` prints.

Takes plain data and gives lines; the same data goes out as JSON elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from autoformer_zoo.accuracies import Accuracy
from autoformer_zoo.describe import ModelInfo
from autoformer_zoo.prediction import Prediction

_COSTS = ("params M", "MACs G", "input", "classes")
_TOP1 = ("published %", "measured %")  # apart on purpose, see `accuracies.py`
_LIST_HEAD = ("model", *_COSTS, *_TOP1, "weights")


def answer_lines(answers: Iterable[list[Prediction]]) -> Iterator[str]:
    """Give each picture and, below it, its answers."""
    for predictions in answers:
        yield predictions[0].picture
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
                "licence": weights.licence,
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
