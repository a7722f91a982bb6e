"""How long a forward pass takes: models of this package and of timm, side by side.

    python -m benchmarks.latency                                 # the sizes against timm's DeiT
    python -m benchmarks.latency --quick                         # under a minute, to see it work
    python -m benchmarks.latency --models autoformer_tiny,autoformer_tiny@explicit --batch-size 1
    python -m benchmarks.latency --backend eager onnxruntime --precision fp32 int8 --save

A model is a name of timm's registry; `@explicit`, `@augmented` or `@decomposed` after a name of
this package fixes the form of its attention. For each input size, precision, number of threads and
batch size, all models in all backends run in the same interleaved rounds (see `timing.py`). Weights
are random: the time does not depend on them. Prints a table, and as the last line one JSON document
with every row. `--save` keeps the rows in results/latency.csv and results/latency_ratios.csv after
each group of models, so that an interrupted run keeps what it has measured.
"""

from __future__ import annotations

import itertools
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from autoformer_zoo.specialization.latency.timing import (
    Call,
    require_device,
    stopwatch_for,
    thread_count,
)
from benchmarks.measure.engines import ENGINES, require_installed
from benchmarks.measure.memory import MIB, apart, in_new_process, onnx_peak, torch_peak
from benchmarks.measure.models import (
    DEIT_OF_SIZE,
    DTYPES,
    Backend,
    BenchmarkModel,
    RunPrecision,
    build,
    macs_of,
    make_call,
    onnx_file,
    pairs_of,
    split_spec,
    supports_model,
    supports_precision,
)
from benchmarks.measure.options import BenchmarkOptions, check_positive, run_benchmark
from benchmarks.measure.rows import (
    Environment,
    Row,
    Setting,
    current_environment,
    latency_row,
    make_row,
    ratio_row,
    throughput_row,
    with_value,
)
from benchmarks.measure.timing import PRODUCT_SIDE, TimingConfig, measure, peak_gflops

NAME = "latency"
DEFAULT_MODELS = tuple(
    name for zoo, deit in DEIT_OF_SIZE.items() for name in (zoo, deit, f"{zoo}@explicit")
)
TIMING = TimingConfig()

_log = logging.getLogger("benchmarks.latency")


@dataclass(frozen=True, slots=True)
class LatencyOptions(BenchmarkOptions):
    """Time the forward pass of models, in eval mode, with random weights."""

    models: tuple[str, ...] = DEFAULT_MODELS  # names; NAME@FORM fixes the form of the attention
    baseline: str | None = None  # model to divide all others by; None: DeiT, and @explicit
    batch_size: tuple[int, ...] = (1, 8)  # images a call
    threads: tuple[int, ...] = (2,)  # threads of torch or the engine, on the CPU
    device: Literal["cpu", "cuda"] = "cpu"  # where to run
    backend: tuple[Backend, ...] = ("eager",)  # cudagraphs: torch.compile with CUDA graphs
    precision: tuple[RunPrecision, ...] = ("fp32",)  # int8: dynamic ranges
    img_size: tuple[int, ...] = ()  # input sides in pixels; empty: each model's own
    memory: bool = False  # measure peak memory too, on the CPU in a new process for each row
    rounds: int = TIMING.rounds  # timed calls of each model, at most
    seconds: float | None = TIMING.seconds  # time for each group of interleaved models, about
    warmup: int = TIMING.warmup  # untimed calls of each model before the first round
    settle: int = TIMING.settle  # untimed calls before each timed one
    quick: bool = False  # by default tiny at batch 1 in few rounds

    @property
    def timing(self) -> TimingConfig:
        """How long to measure each group."""
        return TimingConfig(self.rounds, self.seconds, self.warmup, self.settle)


QUICK = {
    "models": DEFAULT_MODELS[:3],
    "batch_size": (1,),
    "rounds": 5,
    "seconds": 10.0,
    "warmup": 1,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_benchmark(NAME, LatencyOptions, argv, measure_latency, quick=QUICK)


def measure_latency(options: LatencyOptions) -> Iterator[list[Row]]:
    """Time what the options ask for, one group of interleaved models after the other.

    Yields:
        A group's rows: for each model and backend the time and what follows from it, and the
        ratios of `pairs_of`.

    Raises:
        ValueError: an option is out of range, a model is unknown, or there is no CUDA.
    """
    options = validate(options)
    packages = [engine for engine in ENGINES if engine in options.backend]
    environment = current_environment(options.device, packages)
    with tempfile.TemporaryDirectory() as folder:
        for side, precision in itertools.product(options.img_size or (None,), options.precision):
            models = [build(spec, side) for spec in options.models]
            for threads, batch in itertools.product(options.threads, options.batch_size):
                setting = Setting(precision, batch, threads)
                _log.info("%d models, up to %d rounds: %s", len(models), options.rounds, setting)
                with thread_count(threads), torch.inference_mode():
                    yield _measure_group(models, setting, options, environment, Path(folder))


def validate(options: LatencyOptions) -> LatencyOptions:
    """Return the options with each model name once, the baseline among them.

    Raises:
        ValueError: a number is out of range, a name is unknown or missing, there is no CUDA, or
            no backend runs in a precision.
    """
    _ = options.timing  # raises for impossible rounds
    check_positive(options, "batch_size", "threads", *(("img_size",) if options.img_size else ()))
    for name in ("backend", "precision"):
        if not getattr(options, name):
            raise ValueError(f"{name} is empty; expected at least one")
    require_device(options.device)
    if options.device == "cuda" and (given := set(ENGINES) & set(options.backend)):
        raise ValueError(f"{min(given)} is measured on the CPU only; use --device cpu")
    require_installed(*options.backend)
    if options.device == "cpu" and "cudagraphs" in options.backend:
        raise ValueError("cudagraphs needs --device cuda; on the CPU there is --backend compile")
    for precision in options.precision:
        if not any(supports_precision(backend, precision) for backend in options.backend):
            raise ValueError(
                f"no backend of {', '.join(options.backend)} runs in {precision}: onnxruntime is "
                "measured in fp32, int8 and int8-static, openvino also in bf16, the others in "
                "fp32, bf16, fp16"
            )
    names = [name.strip() for given in options.models for name in given.split(",")]
    names += [options.baseline] if options.baseline else []
    models = tuple(dict.fromkeys(name for name in names if name))
    if not models:
        raise ValueError("models is empty; expected at least one name")
    for model in models:
        split_spec(model)
    return replace(options, models=models)


def _measure_group(
    models: Sequence[BenchmarkModel],
    setting: Setting,
    options: LatencyOptions,
    environment: Environment,
    folder: Path,
) -> list[Row]:
    precision = setting.precision
    backends = [name for name in options.backend if supports_precision(name, precision)]
    if {"compile", "cudagraphs"} & set(backends):
        torch.compiler.reset()  # compile again for this batch and these threads
    stopwatch = stopwatch_for(options.device)
    peak = None
    if setting.precision in DTYPES:  # torch has no int8 product to compare with
        peak = peak_gflops(options.device, DTYPES[setting.precision], stopwatch)
    calls: dict[tuple[str, Backend], Call] = {
        (model.name, backend): make_call(model, backend, setting, options.device, folder)
        for model, backend in itertools.product(models, backends)
        if supports_model(backend, model.name)
    }
    times = measure(calls, options.timing, stopwatch)
    note = device_note(options.device)
    by_name = {model.name: model for model in models}
    rows: list[Row] = []
    latencies: dict[tuple[str, Backend], Row] = {}
    for (name, backend), times_ms in times.items():
        model = by_name[name]
        competitor = replace(setting, model=name, backend=backend, input=model.input)
        row = latency_row("latency", times_ms, competitor, environment, note)
        latencies[name, backend] = row
        rows += [row, *derived_rows(row, macs_of(model), peak)]
        if options.memory and backend in ("eager", "onnxruntime"):  # others compile for minutes
            rows += _memory_rows(row, model, setting, options, folder)
    if peak is not None:
        product = replace(setting, model=f"matmul {PRODUCT_SIDE[options.device]}", backend="")
        rows.append(make_row("peak", peak, "GFLOP/s", product, environment))
    for backend in dict.fromkeys(backend for _, backend in times):
        competing = [model for model in options.models if (model, backend) in times]
        for name, other in pairs_of(competing, options.baseline):
            row = latencies[name, backend]
            rows.append(ratio_row(row, times[name, backend], other, times[other, backend]))
    return rows


def derived_rows(row: Row, macs: float, peak: float | None) -> list[Row]:
    """Return what follows from a latency: images/s, and how fast the multiply-adds are done.

    Args:
        row: the latency.
        macs: multiply-adds of one image.
        peak: of the machine, in GFLOP/s, if it was measured.
    """
    rows = [
        throughput_row(row, "throughput", row.batch, "images/s"),
        with_value(row, "macs", macs / 1e9, "G/image"),
    ]
    if peak is not None:
        gflop = 2 * macs * row.batch / 1e9
        rows.append(throughput_row(row, "flops", gflop, "GFLOP/s"))
        rows.append(throughput_row(row, "share_of_peak", 100 * gflop / peak, "%"))
    return rows


def _memory_rows(
    row: Row, model: BenchmarkModel, setting: Setting, options: LatencyOptions, folder: Path
) -> list[Row]:
    if row.backend == "onnxruntime":
        file = onnx_file(model, setting.precision, folder)
        peak = in_new_process(onnx_peak, file, model.input_size, setting)
    else:
        side = model.input_size[1]
        peak = apart(options.device, torch_peak, model.name, side, setting, options.device)
    return [] if peak is None else [with_value(row, "peak_memory", peak / MIB, "MiB")]


def device_note(device: str) -> str:
    """Return a card's clock and temperature if they can be read, "" otherwise."""
    if device != "cuda":
        return ""
    try:
        return f"{torch.cuda.clock_rate()} MHz, {torch.cuda.temperature()} C"
    except (ModuleNotFoundError, RuntimeError):  # these need nvidia-ml-py
        return ""


if __name__ == "__main__":
    sys.exit(main())
