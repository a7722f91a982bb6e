"""How often models are right: top-1, top-5 and ImageNet-ReaL on folders and on timm's data sets.

    python -m benchmarks.accuracy --models autoformer_nano --data torch/cifar10 --root DATA
    python -m benchmarks.accuracy --published --root imagenet/val --out results.csv
    python -m benchmarks.accuracy --models deit_tiny_patch16_224 model.onnx --root imagenet/val
    python -m benchmarks.accuracy --supernet autoformer_nano --subnets subnets.json \\
        --data torch/cifar10 --root DATA

Class folders are named as the model's labels, or by ImageNet's WordNet ids; a folder that the model
does not know is refused by name. `--models` takes NAME, NAME=FILE, a file of one subnet, and
FILE.onnx (`classifiers.py`). `--published` takes every model of this package whose authors state an
accuracy for its weights. A model whose weights are missing is reported and left out; none is ever
scored with random ones. `--out` writes the columns of timm's results files. The last line on stdout
is one JSON document.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autoformer_zoo.cli.command import run_command
from autoformer_zoo.published import PUBLISHED
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.specialization.latency.timing import thread_count
from benchmarks.measure.classifiers import (
    Classifier,
    MissingWeightsError,
    open_classifier,
    open_subnets,
)
from benchmarks.measure.engines import ENGINES, Engine, require_installed
from benchmarks.measure.evaluation import AnswerCounts, evaluate, open_dataset, open_real_labels
from benchmarks.measure.models import TorchPrecision
from benchmarks.measure.options import BenchmarkOptions, check_positive, print_document
from benchmarks.measure.results import save_rows, write_csv
from benchmarks.measure.rows import Row, Setting, current_environment, make_row
from benchmarks.measure.text_table import format_table

NAME = "accuracy"

_log = logging.getLogger("benchmarks.accuracy")


@dataclass(frozen=True, slots=True)
class AccuracyOptions(BenchmarkOptions):
    """Score classifiers on a data set."""

    models: tuple[str, ...] = ()  # NAME, NAME=FILE, FILE or FILE.onnx
    published: bool = False  # score every model whose authors state an accuracy
    supernet: str | None = None  # NAME, NAME=FILE or FILE: whose subnets --subnets lists
    subnets: Path | None = None  # JSON file with a list of subnet configs, or a front.json
    root: Path = Path("data")  # folder of the data set
    data: str = ""  # timm's name: "" for folders by class, wds/, hfds/NAME, torch/cifar10
    split: str = "validation"  # timm's name of the split; of folders, a subfolder or --root itself
    class_map: Path | None = None  # file that gives each folder its label, as timm reads it
    real: str | None = None  # ReaL labels: a JSON file, or timm for the labels that timm ships
    batch_size: int = 100  # images at a time
    workers: int = 0  # processes that prepare images
    threads: int = 2  # threads of torch or the engine, on the CPU
    engine: Engine = "onnxruntime"  # what runs ONNX files
    device: Literal["cpu", "cuda"] = "cpu"  # where to run
    precision: TorchPrecision = "fp32"  # precision of weights; an ONNX file has its own
    limit: int | None = None  # stop after about this many images
    out: Path | None = None  # CSV with the columns of timm's results files
    by_class: Path | None = None  # CSV with a line for each model and class


@dataclass(frozen=True, slots=True, eq=False)
class ScoredModel:
    """A classifier and its right answers."""

    classifier: Classifier
    counts: AnswerCounts

    def timm_cells(self) -> list[str]:
        """Return the cells of `TIMM_COLUMNS`."""
        top1, top5, data = self.counts.percent(1), self.counts.percent(5), self.classifier.data
        return [
            self.classifier.name,
            *(f"{value:.3f}" for value in (top1, 100 - top1, top5, 100 - top5)),
            f"{self.classifier.params / 1e6:.2f}",
            str(data["input_size"][-1]),
            f"{data['crop_pct']:.3f}",
            data["interpolation"],
        ]

    def class_lines(self) -> list[list[str]]:
        """Return the cells of `CLASS_COLUMNS` for each class that has images."""
        return [
            [self.classifier.name, str(i), str(total), *(f"{100 * n / total:.3f}" for n in right)]
            for i, (total, *right) in enumerate(self.counts.by_class.tolist())
            if total
        ]


TIMM_COLUMNS = (
    *("model", "top1", "top1_err", "top5", "top5_err"),
    *("param_count", "img_size", "crop_pct", "interpolation"),
)
CLASS_COLUMNS = ("model", "class", "images", "top1", "top5")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 1 if no model has weights."""
    return run_command(f"python -m benchmarks.{NAME}", AccuracyOptions, argv, _run)


def _run(options: AccuracyOptions) -> int:
    scored, missing = score_all(options)
    if options.out is not None:
        write_csv(options.out, TIMM_COLUMNS, [model.timm_cells() for model in scored])
    if options.by_class is not None:
        lines = [line for model in scored for line in model.class_lines()]
        write_csv(options.by_class, CLASS_COLUMNS, lines)
    rows = [row for model in scored for row in rows_of(model, options)]
    if options.save:
        save_rows(options.results, options.file or NAME, rows)
    print(format_table(rows))
    for reason in missing.values():
        print(f"not scored: {reason}")
    print_document(NAME, rows, missing=missing)
    return 0 if scored else 1


def score_all(options: AccuracyOptions) -> tuple[list[ScoredModel], dict[str, str]]:
    """Score every model that the options name.

    Returns:
        Models with their answers; and for those without weights, why there are none.

    Raises:
        ValueError: an option, a file or the data set is refused.
    """
    check_positive(options, "batch_size", "threads")
    require_installed(options.engine)
    if options.limit is not None:
        check_positive(options, "limit")
    if not options.root.exists():
        raise ValueError(f"{options.root} does not exist; expected the folder of a data set")
    scored: list[ScoredModel] = []
    missing: dict[str, str] = {}
    with thread_count(options.threads):
        for name, opener in openers_of(options).items():
            try:
                classifier = opener()
            except MissingWeightsError as error:
                missing[name] = str(error)
                continue
            dataset = open_dataset(
                options.data, options.root, options.split, classifier.labels, options.class_map
            )
            real = open_real_labels(options.real, dataset) if options.real else None
            _log.info("scoring %s", name)
            counts = evaluate(
                classifier, dataset, options.batch_size, options.workers, options.limit, real
            )
            scored.append(ScoredModel(classifier, counts))
    return scored, missing


def openers_of(options: AccuracyOptions) -> dict[str, Callable[[], Classifier]]:
    """Return how to make each classifier that the options name, by its name.

    Raises:
        ValueError: none is named, or the list of subnets is refused.
    """

    def opener(spec: str) -> Callable[[], Classifier]:
        device, precision, threads = options.device, options.precision, options.threads
        return lambda: open_classifier(spec, device, precision, threads, options.engine)

    names = [*options.models, *(PUBLISHED if options.published else ())]
    openers = {name: opener(name) for name in names}
    if (options.supernet is None) != (options.subnets is None):
        raise ValueError("--supernet and --subnets go together: give both, or neither")
    if options.supernet is not None and options.subnets is not None:
        subnets, img_size = read_subnets(options.subnets)
        made = open_subnets(options.supernet, subnets, options.device, options.precision, img_size)
        openers.update({f"{options.supernet}[{i}]": open_ for i, open_ in enumerate(made)})
    if not openers:
        raise ValueError("no model was named; expected --models, --published or --subnets")
    return openers


def read_subnets(path: Path) -> tuple[list[SubnetConfig], int | None]:
    """Read a JSON list of subnet configs, or the subnets of a front.json of `training.adapt`.

    Returns:
        The subnets, and the side in pixels of the images that a front is for; None for a list.

    Raises:
        ValueError: it is not such a list; the text names the entry.
    """
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    img_size = None
    if isinstance(values, dict) and isinstance(values.get("results"), list):
        img_size = values.get("img_size")
        values = [row.get("subnet") if isinstance(row, dict) else row for row in values["results"]]
    if not isinstance(values, list) or not values:
        raise ValueError(f"{path} holds no list; expected [{{subnet config}}, ...]")
    subnets = []
    for index, value in enumerate(values):
        try:
            subnets.append(SubnetConfig.from_dict(value))
        except ValueError as error:
            raise ValueError(f"{path}, entry {index}: {error}") from None
    return subnets, img_size


def rows_of(scored: ScoredModel, options: AccuracyOptions) -> list[Row]:
    """Return the rows of a model's answers."""
    classifier, counts = scored.classifier, scored.counts
    packages = [engine for engine in ENGINES if engine == classifier.backend]
    environment = current_environment(options.device, packages)
    height, width = classifier.data["input_size"][-2:]
    limited = f" (first {counts.images})" if options.limit is not None else ""
    data = options.data or options.root.name
    setting = Setting(
        classifier.precision,
        options.batch_size,
        options.threads,
        classifier.name,
        classifier.backend,
        f"{data} {options.split}{limited}, {height}x{width}",
    )
    figures = {
        "top1": (counts.percent(1), "%", counts.images),
        "top5": (counts.percent(5), "%", counts.images),
        "real_top1": (counts.real_percent(1), "%", counts.real_images),
        "real_top5": (counts.real_percent(5), "%", counts.real_images),
        "throughput": (counts.images / counts.seconds, "images/s", counts.images),
    }
    return [
        make_row(what, value, unit, setting, environment, repeats)
        for what, (value, unit, repeats) in figures.items()
        if value is not None
    ]


if __name__ == "__main__":
    sys.exit(main())
