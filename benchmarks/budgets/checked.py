"""From a latency budget to a measured model, on a supernet whose data set is at hand.

    python -m benchmarks.budgets.checked --root DATA --save

For each engine, the subnet with the highest predicted accuracy under each of a few latency budgets
is cut out of the embedded nano supernet, timed, and scored on the test set of CIFAR-10: predicted
beside measured. The predictor was fitted to held-out training images, so the test set is new to it.
In int8 the predicted accuracy is that of fp32; the measured one is the int8 file's own.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from autoformer_zoo import create_model, export_onnx
from autoformer_zoo.published import SPACES
from autoformer_zoo.specialization.constraints import Bounds, reachable
from autoformer_zoo.specialization.latency.measure import profile_device, time_subnets
from autoformer_zoo.specialization.latency.profile import Backend, Precision, export_precision
from autoformer_zoo.specialization.selection import Choices, Specialized
from benchmarks.measure.classifiers import Classifier, of_model, open_classifier
from benchmarks.measure.evaluation import evaluate, open_dataset
from benchmarks.measure.options import BenchmarkOptions, check_positive, run_benchmark
from benchmarks.measure.rows import Row, Setting, current_environment, make_row

NAME = "budgets.checked"
SPACE, MODEL, DATA = "nano", "autoformer_nano", "torch/cifar10"
PREDICTED = "predicted top-1"
SETTINGS: tuple[tuple[Backend, Precision], ...] = (
    ("eager", "fp32"),
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
)


@dataclass(frozen=True, slots=True)
class CheckedOptions(BenchmarkOptions):
    """Specialize nano under latency budgets, and measure what was found."""

    root: Path = Path("data")  # directory that holds cifar-10-batches-py
    data: str = DATA  # timm's name of the data set; "" for folders by class
    split: str = "validation"  # timm's name of the split
    predictor: Path | None = None  # accuracy predictor; by default the package's
    budgets: int = 3  # latencies, spread evenly inside what the space reaches
    threads: int = 1  # on the CPU
    seconds: float = 60.0  # of timing, for the profile and for what was found
    limit: int | None = None  # stop after about this many images


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_benchmark(NAME, CheckedOptions, argv, check_budgets, file="checked")


def check_budgets(options: CheckedOptions) -> Iterator[list[Row]]:
    """Yield predicted and measured figures of the subnet found under each budget, by engine.

    Raises:
        ValueError: an option is out of range, or the data is not there.
    """
    check_positive(options, "budgets", "threads", "seconds")
    if not options.root.exists():
        raise ValueError(f"{options.root} does not exist; expected the folder of a data set")
    for backend, precision in SETTINGS:
        profile = profile_device(
            SPACE,
            backend=backend,
            precision=precision,
            threads=options.threads,
            seconds=options.seconds,
        )
        choices = Choices.of(SPACE, options.predictor, profile)
        low, high = reachable(choices.space, choices.costs[-1])
        step = (high - low) / (options.budgets + 1)
        budgets = [low + step * (i + 1) for i in range(options.budgets)]
        found = [choices.search(Bounds(max_latency_ms=budget))[0] for budget in budgets]
        timed = time_subnets(
            SPACES[SPACE], profile.setting, [each.subnet for each in found], options.seconds
        )
        setting = Setting(precision, 1, options.threads, SPACE, backend)
        for number, (budget, each, ms) in enumerate(zip(budgets, found, timed.ms, strict=True), 1):
            place = replace(setting, input=f"budget {number} of {options.budgets}")
            yield list(_rows(place, budget, each, ms, options))


def _rows(
    setting: Setting, budget_ms: float, found: Specialized, ms: float, options: CheckedOptions
) -> Iterator[Row]:
    environment = current_environment("cpu", ["onnxruntime"])
    model = create_model(MODEL, pretrained=True, subnet=found.subnet)
    classifier = _classifier(model, setting)
    dataset = open_dataset(options.data, options.root, options.split, classifier.labels)
    counts = evaluate(classifier, dataset, 100, 0, options.limit)
    top1, note = found.top1, found.subnet.to_json()
    assert found.latency_ms is not None
    predicted = make_row(PREDICTED, top1.value, "%", setting, environment, note=note)
    yield replace(predicted, low=top1.low, high=top1.high)
    yield make_row("top-1", counts.percent(1), "%", setting, environment, counts.images)
    yield make_row("budget", budget_ms, "ms", setting, environment)
    yield make_row("predicted latency", found.latency_ms, "ms", setting, environment)
    yield make_row("latency", ms, "ms", setting, environment)
    yield make_row("parameters", found.params, "", setting, environment)


def _classifier(model: nn.Module, setting: Setting) -> Classifier:
    """Return what scores the model as the engine runs it."""
    if setting.backend == "eager":
        return of_model(MODEL, model, "cpu", setting.precision)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, path, precision=export_precision(setting.precision))
        return open_classifier(str(path), "cpu", setting.precision, setting.threads)


if __name__ == "__main__":
    sys.exit(main())
