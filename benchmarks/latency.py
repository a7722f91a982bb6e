"""How long a forward pass takes: models of this package and of timm, side by side.

    python -m benchmarks.latency                                 # the sizes against timm's DeiT
    python -m benchmarks.latency --quick                         # under a minute, to see it work
    python -m benchmarks.latency --models autoformer_tiny,autoformer_tiny@explicit --batch-size 1
    python -m benchmarks.latency --backend eager onnxruntime --precision fp32 int8 --save

A model is a name of timm's registry; `@explicit`, `@augmented` or `@decomposed` after a name of
this package fixes the form of its attention. All models, in all backends, run in the same
interleaved rounds for each input size, precision, number of threads and batch size (see
`timing.py`). Weights are random: the time does not depend on them. Prints a table, and as the last
line one JSON document with every row. `--save` keeps the rows in results/latency.csv and
results/latency_ratios.csv, group by group, so that an interrupted run keeps what it has measured.
"""

from __future__ import annotations

import itertools
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from autoformer_zoo.network.attention import AttentionForm
from benchmarks.measure.competitors import (
    DEIT_OF_SIZE,
    DTYPES,
    Backend,
    Competitor,
    OnnxFiles,
    Precision,
    Track,
    build,
    macs_of,
    make_run,
    pairs_of,
    runs_in,
    split_spec,
    takes_part,
    thread_count,
)
from benchmarks.measure.memory import peak_of_model
from benchmarks.measure.options import require_positive, run_command, shortened
from benchmarks.measure.results import RESULTS, save_rows
from benchmarks.measure.rows import (
    Environment,
    RatioRow,
    Row,
    Setting,
    current_environment,
    rate,
    restated,
    single,
    timed,
)
from benchmarks.measure.timing import (
    SIDE,
    Plan,
    Stopwatch,
    cuda_stopwatch,
    measure,
    peak_gflops,
    ratio_of_medians,
    require_device,
    summarise,
    wall_stopwatch,
)

PROGRAM = "python -m benchmarks.latency"
ROWS, RATIOS = "latency.csv", "latency_ratios.csv"

_log = logging.getLogger("benchmarks.latency")


@dataclass(frozen=True, slots=True)
class LatencyOptions:
    """Time the forward pass of models, in eval mode, with random weights."""

    models: tuple[str, ...] = tuple(
        name for zoo, deit in DEIT_OF_SIZE.items() for name in (zoo, deit, f"{zoo}@explicit")
    )  # names, with spaces or commas between them; NAME@FORM fixes the form of the attention
    baseline: str | None = None  # divide all others by this model; else by DeiT and by @explicit
    batch_size: tuple[int, ...] = (1, 8)  # images
    threads: tuple[int, ...] = (2,)  # of torch or onnxruntime, on the CPU
    device: Literal["cpu", "cuda"] = "cpu"  # where to run
    backend: tuple[Backend, ...] = ("eager",)  # cudagraphs: torch.compile with CUDA graphs
    precision: tuple[Precision, ...] = ("fp32",)  # int8: onnxruntime alone, dynamic quantization
    img_size: tuple[int, ...] = ()  # input sides in pixels; each model's own where there is none
    attention: AttentionForm = "auto"  # form for this package's models that name none with @
    memory: bool = False  # measure peak memory too, in one new process for each row
    rounds: int = Plan().rounds  # timed calls of each model, at most
    seconds: float | None = Plan().seconds  # for each group of interleaved models, about
    warmup: int = Plan().warmup  # untimed calls of each model before the first round
    settle: int = Plan().settle  # untimed calls before each timed one
    seed: int = Plan().seed  # of the order in the rounds, of images and of weights
    quick: bool = False  # tiny at batch 1 in few rounds, where nothing else is asked for
    save: bool = False  # keep the rows in --results
    results: Path = RESULTS  # folder of the files of rows

    @property
    def plan(self) -> Plan:
        """How long to measure each group."""
        return Plan(self.rounds, self.seconds, self.warmup, self.settle, self.seed)


QUICK = {
    "models": LatencyOptions().models[:3],
    "batch_size": (1,),
    "rounds": 5,
    "seconds": 10.0,
    "warmup": 1,
}

Times = dict[tuple[str, Backend], list[float]]
Group = tuple[list[Row], list[RatioRow]]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print; 2 with one line on stderr where the input is wrong."""
    return run_command(PROGRAM, LatencyOptions, argv, _work)


def _work(options: LatencyOptions) -> tuple[str, dict[str, Any]]:
    rows: list[Row] = []
    ratios: list[RatioRow] = []
    for more_rows, more_ratios in measure_groups(options):
        if options.save:
            save_rows(options.results / ROWS, more_rows)
            save_rows(options.results / RATIOS, more_ratios)
        rows += more_rows
        ratios += more_ratios
    document = {
        "what": "latency",
        "weights": "random",
        "rows": [asdict(row) for row in rows],
        "ratios": [asdict(ratio) for ratio in ratios],
    }
    return format_table(rows, ratios), document


def measure_latency(options: LatencyOptions) -> Group:
    """Time everything that the options ask for; returns and raises as `measure_groups`."""
    groups = list(measure_groups(options))
    return (
        [row for rows, _ in groups for row in rows],
        [ratio for _, ratios in groups for ratio in ratios],
    )


def measure_groups(options: LatencyOptions) -> Iterator[Group]:
    """Time what the options ask for, one group of interleaved models after the other.

    Yields:
        A group's rows: for each model and backend the time and what follows from it, and the
        ratios of `pairs_of`.

    Raises:
        ValueError: an option is out of its range, a model is unknown, or there is no CUDA.
    """
    options = checked(shortened(options, QUICK) if options.quick else options)
    packages = ["onnxruntime"] if "onnxruntime" in options.backend else []
    environment = current_environment(options.device, packages)
    stopwatch = cuda_stopwatch() if options.device == "cuda" else wall_stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        track = Track(options.device, options.seed, OnnxFiles(Path(folder)))
        for side, precision in itertools.product(options.img_size or (None,), options.precision):
            competitors = [
                build(spec, side, options.attention, options.seed) for spec in options.models
            ]
            for threads, batch in itertools.product(options.threads, options.batch_size):
                setting = Setting(precision, batch, threads)
                size = f"{len(competitors)} models, up to {options.rounds} rounds"
                _log.info("%s: %s", size, setting)
                with thread_count(threads), torch.inference_mode():
                    yield _measure_group(
                        competitors, setting, options, track, stopwatch, environment
                    )


def checked(options: LatencyOptions) -> LatencyOptions:
    """Return the options with the model names apart, each once, and the baseline among them.

    Raises:
        ValueError: a number is out of its range, a name is unknown or missing, there is no CUDA, or
            no backend runs in a precision.
    """
    _ = options.plan  # refuses impossible rounds
    for name in ("batch_size", "threads"):
        require_positive(name, getattr(options, name))
    if options.img_size:
        require_positive("img_size", options.img_size)
    for name in ("backend", "precision"):
        if not getattr(options, name):
            raise ValueError(f"{name} is empty; expected at least one")
    _check_device(options)
    for precision in options.precision:
        if not any(runs_in(backend, precision) for backend in options.backend):
            raise ValueError(
                f"no backend of {', '.join(options.backend)} runs in {precision}: onnxruntime "
                "is measured in fp32 and int8, the others in fp32, bf16 and fp16"
            )
    names = [name.strip() for given in options.models for name in given.split(",")]
    names += [options.baseline] if options.baseline else []
    models = tuple(dict.fromkeys(name for name in names if name))
    if not models:
        raise ValueError("models is empty; expected at least one name")
    for model in models:
        split_spec(model)
    return replace(options, models=models)


def _check_device(options: LatencyOptions) -> None:
    require_device(options.device)
    if options.device == "cuda" and "onnxruntime" in options.backend:
        raise ValueError("onnxruntime is measured on the CPU only; use --device cpu")
    if options.device == "cpu" and "cudagraphs" in options.backend:
        raise ValueError("cudagraphs needs --device cuda; on the CPU there is --backend compile")


def _measure_group(
    competitors: Sequence[Competitor],
    setting: Setting,
    options: LatencyOptions,
    track: Track,
    stopwatch: Stopwatch,
    environment: Environment,
) -> Group:
    backends = [each for each in options.backend if runs_in(each, _precision(setting))]
    if {"compile", "cudagraphs"} & set(backends):
        torch.compiler.reset()  # compile anew for this batch and these threads
    peak = None
    if setting.precision in DTYPES:
        peak = peak_gflops(options.device, DTYPES[setting.precision], stopwatch)
    runs: dict[tuple[str, Backend], Callable[[], object]] = {
        (competitor.name, backend): make_run(competitor, backend, setting, track)
        for competitor, backend in itertools.product(competitors, backends)
        if takes_part(competitor.name, backend)
    }
    times = measure(runs, options.plan, stopwatch)
    note = device_note(options.device)
    by_name = {competitor.name: competitor for competitor in competitors}
    rows: list[Row] = []
    for (name, backend), times_ms in times.items():
        competitor = by_name[name]
        row = _latency_row(competitor, backend, setting, environment, times_ms, note)
        rows += [row, *derived_rows(row, macs_of(competitor), peak)]
        if options.memory and backend in ("eager", "onnxruntime"):  # others compile for minutes
            rows += _memory_rows(row, competitor, setting, options, track)
    if peak is not None:
        side = SIDE[options.device]
        rows.append(single("peak", f"matmul {side}", peak, "GFLOP/s", setting, environment))
    return rows, _ratios(times, setting, by_name, options, environment)


def _precision(setting: Setting) -> Precision:
    return setting.precision  # type: ignore[return-value]  # a row's is any text


def _latency_row(
    competitor: Competitor,
    backend: Backend,
    setting: Setting,
    environment: Environment,
    times_ms: Sequence[float],
    note: str,
) -> Row:
    times, place = summarise(times_ms), competitor.input
    return timed("latency", competitor.name, times, setting, environment, place, backend, note)


def derived_rows(row: Row, macs: float, peak: float | None) -> list[Row]:
    """Return what follows from a latency: images/s, and how fast the multiply-adds are done.

    Args:
        row: the latency.
        macs: multiply-adds of one image.
        peak: of the machine, in GFLOP/s, where it was measured.
    """

    rows = [
        rate(row, "throughput", row.batch, "images/s"),
        restated(row, "macs", (macs / 1e9,) * 3, "G a image", repeats=1),
    ]
    if peak is not None:  # in int8 there is no product of torch to compare with
        gflop = 2 * macs * row.batch / 1e9
        rows.append(rate(row, "flops", gflop, "GFLOP/s"))
        rows.append(rate(row, "share_of_peak", 100 * gflop / peak, "%"))
    return rows


def _memory_rows(
    row: Row, competitor: Competitor, setting: Setting, options: LatencyOptions, track: Track
) -> list[Row]:
    onnx_file = None
    if row.backend == "onnxruntime":
        onnx_file = track.files.path(
            competitor.name, competitor.module, competitor.input, setting.precision
        )
    peak = peak_of_model(
        competitor.name,
        competitor.input_size,
        setting.batch,
        setting.threads,
        options.device,
        setting.precision,
        options.attention,
        onnx_file,
    )
    if peak is None:  # neither CUDA nor Linux
        return []
    return [restated(row, "peak_memory", (peak,) * 3, "MiB", repeats=1)]


def device_note(device: str) -> str:
    """Return a card's clock and temperature where they can be read, "" elsewhere."""
    if device != "cuda":
        return ""
    try:
        return f"{torch.cuda.clock_rate()} MHz, {torch.cuda.temperature()} C"
    except (ModuleNotFoundError, RuntimeError):  # these need nvidia-ml-py
        return ""


def _ratios(
    times: Times,
    setting: Setting,
    by_name: dict[str, Competitor],
    options: LatencyOptions,
    environment: Environment,
) -> list[RatioRow]:
    rows = []
    for backend in dict.fromkeys(backend for _, backend in times):
        models = [model for model in options.models if (model, backend) in times]
        for model, baseline in pairs_of(models, options.baseline):
            ratio = ratio_of_medians(times[model, backend], times[baseline, backend])
            rows.append(
                RatioRow(
                    what="latency",
                    model=model,
                    baseline=baseline,
                    backend=backend,
                    **asdict(setting),
                    input=by_name[model].input,
                    **asdict(environment),
                    **asdict(ratio),
                    repeats=len(times[model, backend]),
                )
            )
    return rows


if __name__ == "__main__":
    sys.exit(main())


FIGURES = {  # heading, width, digits after the point; of rows whose `what` is the key
    "throughput": ("images/s", 11, 1),
    "macs": ("GMACs", 7, 2),
    "flops": ("GFLOP/s", 9, 1),
    "share_of_peak": ("% of peak", 10, 1),
    "peak_memory": ("peak MiB", 9, 0),
}


def format_table(rows: Sequence[Row], ratios: Sequence[RatioRow]) -> str:
    """Return the rows, one line a model and setting, and the ratios below, as lines of text."""
    heading = (
        f"{'model':<34} {'backend':<11} {'precision':<9} {'input':<9} {'batch':>5} {'threads':>7} "
        f"{'median ms':>10} {'p10':>9} {'p90':>9}"
    )
    heading += "".join(f"{title:>{width}}" for title, width, _ in FIGURES.values())
    by_line: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in rows:
        by_line.setdefault(row.key[1:], {})[row.what] = row
    lines = [_line(line) for line in by_line.values() if "latency" in line]
    lines += [f"{r.model:<34} {r.precision:<9} {r.median:.0f} {r.unit}" for r in peaks(rows)]
    text = [heading, *lines]
    if ratios:
        text += ["", "ratio of medians, with a bootstrap interval of 95 %"]
        text += [_ratio_line(ratio) for ratio in ratios]
    return "\n".join(text)


def peaks(rows: Sequence[Row]) -> list[Row]:
    """Return the machine's peaks among the rows, the fastest for each precision."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row.what == "peak":
            known = found.setdefault((row.machine, row.precision), row)
            found[row.machine, row.precision] = max(known, row, key=lambda each: each.median)
    return list(found.values())


def _line(figures: Mapping[str, Row]) -> str:
    row = figures["latency"]
    text = (
        f"{row.model:<34} {row.backend:<11} {row.precision:<9} {row.input:<9} {row.batch:>5} "
        f"{row.threads:>7} {row.median:>10.2f} {row.p10:>9.2f} {row.p90:>9.2f}"
    )
    for what, (_, width, digits) in FIGURES.items():
        value = f"{figures[what].median:.{digits}f}" if what in figures else "-"
        text += f"{value:>{width}}"
    return text


def _ratio_line(ratio: RatioRow) -> str:
    return (
        f"{ratio.model:<26} / {ratio.baseline:<30} {ratio.backend:<11} {ratio.precision:<5} "
        f"batch {ratio.batch:<4} threads {ratio.threads:<3} "
        f"{ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    )
