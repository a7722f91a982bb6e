"""How often models are right: top-1, top-5 and ImageNet-ReaL on any data set that timm opens.

    python -m benchmarks.accuracy --models autoformer_nano --data torch/cifar10 --root DATA
    python -m benchmarks.accuracy --published --root imagenet/val --out results.csv
    python -m benchmarks.accuracy --models deit_tiny_patch16_224 model.onnx --root imagenet/val
    python -m benchmarks.accuracy --supernet autoformer_nano --subnets subnets.json \\
        --data torch/cifar10 --root DATA

`--models` takes NAME, NAME=FILE, a file of one subnet, and FILE.onnx (`classifiers.py`).
`--published` takes every model of this package for whose weights the authors state an accuracy. A
model whose weights cannot be had is reported and left out; none is ever scored with random ones.
`--out` writes the columns of timm's results files. The last line on stdout is one JSON document.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from autoformer_zoo.published import PUBLISHED
from autoformer_zoo.space import SubnetConfig
from benchmarks.measure.classifiers import (
    Classifier,
    MissingWeightsError,
    open_classifier,
    open_subnets,
)
from benchmarks.measure.competitors import thread_count
from benchmarks.measure.evaluation import Score, evaluate, open_dataset, read_real_labels
from benchmarks.measure.options import require_positive, run_command
from benchmarks.measure.results import RESULTS, save_rows, write_csv
from benchmarks.measure.rows import Row, Setting, current_environment, single

PROGRAM = "python -m benchmarks.accuracy"
ROWS = "accuracy.csv"

_log = logging.getLogger("benchmarks.accuracy")


@dataclass(frozen=True, slots=True)
class AccuracyOptions:
    """Score classifiers on a data set."""

    models: tuple[str, ...] = ()  # NAME, NAME=FILE, FILE or FILE.onnx
    published: bool = False  # every model whose authors state an accuracy
    supernet: str | None = None  # NAME, NAME=FILE or FILE: whose subnets --subnets lists
    subnets: Path | None = None  # JSON: a list of subnet configs
    root: Path = Path("data")  # folder of the data set
    data: str = ""  # timm's name: "" for folders by class, wds/, hfds/NAME, torch/cifar10
    split: str = "validation"  # timm's name of the part
    class_map: Path | None = None  # which folder is which class, as timm reads it
    real: str | None = None  # ReaL labels: a JSON file, or timm for those that timm ships
    batch_size: int = 100  # images at a time
    workers: int = 0  # processes that prepare images
    threads: int = 2  # of torch or onnxruntime, on the CPU
    device: Literal["cpu", "cuda"] = "cpu"  # where to run
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of weights; an ONNX file has its own
    limit: int | None = None  # stop after about so many images
    out: Path | None = None  # CSV with the columns of timm's results files
    by_class: Path | None = None  # CSV with a line for each model and class
    save: bool = False  # keep the rows in --results
    results: Path = RESULTS  # folder of the file of rows


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A classifier and how it did."""

    classifier: Classifier
    score: Score

    def timm_cells(self) -> list[str]:
        """Return the cells of `TIMM_COLUMNS`."""
        top1, top5, data = self.score.percent(1), self.score.percent(2), self.classifier.data
        return [
            self.classifier.name,
            *(f"{value:.3f}" for value in (top1, 100 - top1, top5, 100 - top5)),
            f"{self.classifier.params / 1e6:.2f}",
            str(data["input_size"][-1]),
            f"{data['crop_pct']:.3f}",
            data["interpolation"],
        ]


TIMM_COLUMNS = (
    *("model", "top1", "top1_err", "top5", "top5_err"),
    *("param_count", "img_size", "crop_pct", "interpolation"),
)
CLASS_COLUMNS = ("model", "class", "images", "top1", "top5")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, score, print; 2 where the input is wrong, 1 where no model had weights."""
    return run_command(PROGRAM, AccuracyOptions, argv, _work)


def _work(options: AccuracyOptions) -> tuple[str, dict[str, Any]]:
    scored, missing = score_all(options)
    if options.out is not None:
        write_csv(options.out, TIMM_COLUMNS, [each.timm_cells() for each in scored])
    if options.by_class is not None:
        lines = [line for each in scored for line in class_lines(each)]
        write_csv(options.by_class, CLASS_COLUMNS, lines)
    rows = [row for each in scored for row in rows_of(each, options)]
    if options.save:
        save_rows(options.results / ROWS, rows)
    document = {
        "what": "accuracy",
        "rows": [asdict(row) for row in rows],
        "missing": missing,
        "exit_code": 0 if scored else 1,
    }
    return format_table(scored, missing), document


def score_all(options: AccuracyOptions) -> tuple[list[Scored], dict[str, str]]:
    """Score every model that the options name.

    Returns:
        Models with their scores; and for those without weights, why there are none.

    Raises:
        ValueError: an option, a file or the data set is refused.
    """
    require_positive("batch_size", (options.batch_size,))
    require_positive("threads", (options.threads,))
    if options.limit is not None:
        require_positive("limit", (options.limit,))
    openers = openers_of(options)
    real = read_real_labels(options.real) if options.real else []
    scored: list[Scored] = []
    missing: dict[str, str] = {}
    with thread_count(options.threads):
        for name, opener in openers.items():
            dataset = open_dataset(options.data, options.root, options.split, options.class_map)
            try:
                classifier = opener()
            except MissingWeightsError as error:
                missing[name] = str(error)
                continue
            _log.info("scoring %s", name)
            score = evaluate(
                classifier, dataset, options.batch_size, options.workers, options.limit, real
            )
            scored.append(Scored(classifier, score))
    return scored, missing


def openers_of(options: AccuracyOptions) -> dict[str, Callable[[], Classifier]]:
    """Return how to make each classifier that the options name, by its name.

    Raises:
        ValueError: none is named, or the list of subnets is refused.
    """

    def opener(spec: str) -> Callable[[], Classifier]:
        device, precision, threads = options.device, options.precision, options.threads
        return lambda: open_classifier(spec, device, precision, threads)

    names = [*options.models, *(PUBLISHED if options.published else ())]
    openers = {name: opener(name) for name in names}
    if (options.supernet is None) != (options.subnets is None):
        raise ValueError("--supernet and --subnets go together: give both, or neither")
    if options.supernet is not None and options.subnets is not None:
        subnets = read_subnets(options.subnets)
        made = open_subnets(options.supernet, subnets, options.device, options.precision)
        openers.update({f"{options.supernet}[{i}]": each for i, each in enumerate(made)})
    if not openers:
        raise ValueError("no model was named; expected --models, --published or --subnets")
    return openers


def read_subnets(path: Path) -> list[SubnetConfig]:
    """Read a JSON list of subnet configs.

    Raises:
        ValueError: it is no such list; the text names the entry.
    """
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, list) or not values:
        raise ValueError(f"{path} holds no list; expected [{{subnet config}}, ...]")
    subnets = []
    for index, value in enumerate(values):
        try:
            subnets.append(SubnetConfig.from_dict(value))
        except ValueError as error:
            raise ValueError(f"{path}, entry {index}: {error}") from None
    return subnets


def rows_of(scored: Scored, options: AccuracyOptions) -> list[Row]:
    """Return the rows of a model's score."""
    classifier, score = scored.classifier, scored.score
    packages = ["onnxruntime"] if classifier.backend == "onnxruntime" else []
    environment = current_environment(options.device, packages)
    height, width = classifier.data["input_size"][-2:]
    limited = f" (first {score.images})" if options.limit is not None else ""
    data = options.data or options.root.name
    figures = {
        "top1": (score.percent(1), "%", score.images),
        "top5": (score.percent(2), "%", score.images),
        "real_top1": (score.real_percent(1), "%", int(score.real[0])),
        "real_top5": (score.real_percent(2), "%", int(score.real[0])),
        "throughput": (score.images / score.seconds, "images/s", score.images),
    }
    return [
        single(
            what,
            classifier.name,
            value,
            unit,
            Setting(classifier.precision, options.batch_size, options.threads),
            environment,
            classifier.backend,
            f"{data} {options.split}{limited}, {height}x{width}",
            repeats,
        )
        for what, (value, unit, repeats) in figures.items()
        if value is not None
    ]


def class_lines(scored: Scored) -> list[list[str]]:
    """Return the cells of `CLASS_COLUMNS` for each class that has images."""
    return [
        [scored.classifier.name, str(index), str(total), *(f"{100 * n / total:.3f}" for n in right)]
        for index, (total, *right) in enumerate(scored.score.by_class.tolist())
        if total
    ]


def format_table(scored: Sequence[Scored], missing: dict[str, str]) -> str:
    """Return the scores, and what has none, as lines of text."""
    lines = [f"{'model':<40} {'top-1 %':>8} {'top-5 %':>8} {'ReaL %':>8} {'images':>9} /s"]
    for each in scored:
        score, real = each.score, each.score.real_percent(1)
        lines.append(
            f"{each.classifier.name:<40} {score.percent(1):>8.3f} {score.percent(2):>8.3f} "
            f"{'-' if real is None else f'{real:.3f}':>8} {score.images:>9} "
            f"{score.images / score.seconds:.0f}"
        )
    lines += [f"not scored: {reason}" for reason in missing.values()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
