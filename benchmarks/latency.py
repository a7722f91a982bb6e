"""How long a forward pass takes: models of this package and of timm, side by side.

    python -m benchmarks.latency                                 # the sizes against timm's DeiT
    python -m benchmarks.latency --quick                         # under a minute, to see it work
    python -m benchmarks.latency --models autoformer_tiny,autoformer_tiny@explicit --batch-size 1

A model is a name of timm's registry; `@explicit`, `@augmented` or `@decomposed` after a name of
this package fixes the form of its attention. All models, in all backends, run in the same
interleaved rounds for each batch size, number of threads and precision (see `timing.py`). Weights
are random: the time does not depend on them. Prints a table, and as the last line one JSON
document with every row.
"""

from __future__ import annotations

import difflib
import itertools
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import timm
import torch
import tyro
from torch import Tensor, nn

import autoformer_zoo
from autoformer_zoo.attention import AttentionForm, check_form
from benchmarks.rows import Environment, RatioRow, Row, current_environment
from benchmarks.timing import (
    Plan,
    Stopwatch,
    cuda_stopwatch,
    measure,
    ratio_of_medians,
    summarise,
    wall_stopwatch,
)

Backend = Literal["eager", "compile"]
Precision = Literal["fp32", "bf16", "fp16"]

DEIT_OF_SIZE = {
    "autoformer_tiny": "deit_tiny_patch16_224",
    "autoformer_small": "deit_small_patch16_224",
    "autoformer_base": "deit_base_patch16_224",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NUM_INPUTS = 4  # different pictures in turn, so that none is always in the cache

_log = logging.getLogger("benchmarks.latency")


@dataclass(frozen=True, slots=True)
class LatencyOptions:
    """Time the forward pass of models, in eval mode, with random weights."""

    models: tuple[str, ...] = tuple(
        name for zoo, deit in DEIT_OF_SIZE.items() for name in (zoo, deit, f"{zoo}@explicit")
    )  # names, with spaces or commas between them; NAME@FORM fixes the form of the attention
    baseline: str | None = None  # divide all others by this model; else by DeiT and by @explicit
    batch_size: tuple[int, ...] = (1, 8)  # pictures
    threads: tuple[int, ...] = (2,)  # of torch, on the CPU
    device: Literal["cpu", "cuda"] = "cpu"  # where to run
    backend: tuple[Backend, ...] = ("eager",)  # as is, or by torch.compile
    precision: tuple[Precision, ...] = ("fp32",)  # of weights and pictures
    img_size: int | None = None  # input side in pixels; each model's own where None
    attention: AttentionForm = "auto"  # form for this package's models that name none with @
    rounds: int = Plan().rounds  # timed calls of each model, at most
    seconds: float | None = Plan().seconds  # for each group of interleaved models, about
    warmup: int = Plan().warmup  # untimed calls of each model before the first round
    settle: int = Plan().settle  # untimed calls before each timed one
    seed: int = Plan().seed  # of the order in the rounds, of pictures and of weights
    quick: bool = False  # tiny at batch 1 in few rounds, where nothing else is asked for

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


@dataclass(frozen=True, slots=True)
class Competitor:
    """A model that takes part: what it is and what it eats."""

    name: str
    module: nn.Module
    input_size: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Setting:
    """What all competitors of a group of rounds have in common."""

    precision: Precision
    batch: int
    threads: int


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print; 2 with one line on stderr where the input is wrong."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    options = tyro.cli(LatencyOptions, args=argv, prog="python -m benchmarks.latency")
    try:
        rows, ratios = measure_latency(options)
    except ValueError as error:
        print(f"python -m benchmarks.latency: {error}", file=sys.stderr)
        return 2
    print(format_table(rows, ratios))
    document = {
        "what": "latency",
        "weights": "random",
        "rows": [asdict(row) for row in rows],
        "ratios": [asdict(ratio) for ratio in ratios],
    }
    print(json.dumps(document))
    return 0


def measure_latency(options: LatencyOptions) -> tuple[list[Row], list[RatioRow]]:
    """Time everything that the options ask for.

    Returns:
        A row for each model, backend and setting, and the ratios of `pairs_of`.

    Raises:
        ValueError: an option is out of its range, a model is unknown, or there is no CUDA.
    """
    options = checked(shortened(options) if options.quick else options)
    environment = current_environment(options.device)
    stopwatch = cuda_stopwatch() if options.device == "cuda" else wall_stopwatch()
    rows: list[Row] = []
    ratios: list[RatioRow] = []
    for precision in options.precision:
        competitors = [build(spec, precision, options) for spec in options.models]
        for threads, batch in itertools.product(options.threads, options.batch_size):
            setting = Setting(precision, batch, threads)
            _log.info("%d models, up to %d rounds: %s", len(competitors), options.rounds, setting)
            with thread_count(threads), torch.inference_mode():
                times = _measure_group(competitors, setting, options, stopwatch)
            sizes = {competitor.name: competitor.input_size for competitor in competitors}
            rows += _rows(times, setting, sizes, environment)
            ratios += _ratios(times, setting, options)
    return rows, ratios


def shortened(options: LatencyOptions) -> LatencyOptions:
    """Put the values of `QUICK` where an option still has its default."""
    default = LatencyOptions()
    changed = {
        f.name for f in fields(options) if getattr(options, f.name) != getattr(default, f.name)
    }
    values: dict[str, Any] = {k: v for k, v in QUICK.items() if k not in changed}  # as QUICK's
    return replace(options, **values)


def checked(options: LatencyOptions) -> LatencyOptions:
    """Return the options with the model names apart, each once, and the baseline among them.

    Raises:
        ValueError: a number is out of its range, a name is unknown or missing, or there is no CUDA.
    """
    _ = options.plan  # refuses impossible rounds
    for name in ("batch_size", "threads", "backend", "precision"):
        if not getattr(options, name):
            raise ValueError(f"{name} is empty; expected at least one")
    for name in ("batch_size", "threads"):
        if min(getattr(options, name)) < 1:
            raise ValueError(f"{name} is {getattr(options, name)}; expected positive numbers")
    if options.img_size is not None and options.img_size < 1:
        raise ValueError(f"img_size is {options.img_size}; expected a positive number of pixels")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch finds no CUDA here; use --device cpu")
    names = [name.strip() for given in options.models for name in given.split(",")]
    names += [options.baseline] if options.baseline else []
    models = tuple(dict.fromkeys(name for name in names if name))
    if not models:
        raise ValueError("models is empty; expected at least one name")
    for model in models:
        split_spec(model)
    return replace(options, models=models)


def pairs_of(models: Sequence[str], baseline: str | None) -> list[tuple[str, str]]:
    """List which model is divided by which.

    Args:
        models: names of all competitors.
        baseline: the one to divide all others by. Without it each size of this package is divided
            by timm's DeiT of that size, and each model by its own `@explicit`, where they compete.
    """
    if baseline is not None:
        return [(model, baseline) for model in models if model != baseline]
    return [
        (model, other)
        for model in models
        for other in (DEIT_OF_SIZE.get(model, model), f"{model}@explicit")
        if other != model and other in models
    ]


def split_spec(spec: str) -> tuple[str, str]:
    """Split NAME or NAME@FORM into the name and the form, "" for none.

    Raises:
        ValueError: the name or the form is unknown, or a form is asked of a model without forms.
    """
    name, _, form = spec.partition("@")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"no model {name!r}; {hint}timm.list_models() lists all")
    if form and not _has_forms(name):
        raise ValueError(f"{spec}: only models of this package have forms of attention")
    if form:
        check_form(form, f"the form of {spec}")
    return name, form


def build(spec: str, precision: Precision, options: LatencyOptions) -> Competitor:
    """Make the model of NAME or NAME@FORM, with random weights, in eval mode.

    Raises:
        ValueError: as `split_spec`.
    """
    name, form = split_spec(spec)
    cfg = timm.models.get_pretrained_cfg(name)
    kwargs: dict[str, object] = {}
    if _has_forms(name):
        kwargs["attention"] = form or options.attention
    side = options.img_size
    if side is not None and cfg.fixed_input_size:
        kwargs["img_size"] = side
    torch.manual_seed(options.seed)
    module = timm.create_model(name, pretrained=False, **kwargs).eval()
    channels, height, width = cfg.input_size
    input_size = (channels, side or height, side or width)
    return Competitor(spec, module.to(options.device, DTYPES[precision]), input_size)


def _has_forms(name: str) -> bool:
    return name.split(".")[0] in autoformer_zoo.list_models()


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Have torch use so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def format_table(rows: Sequence[Row], ratios: Sequence[RatioRow]) -> str:
    """Return the rows, and under each the ratios of its model in its setting, as lines of text."""
    lines = [
        f"{'model':<34} {'backend':<8} {'precision':<9} {'batch':>5} {'threads':>7} "
        f"{'median ms':>10} {'p10':>9} {'p90':>9}"
    ]
    for row in rows:
        lines.append(
            f"{row.model:<34} {row.backend:<8} {row.precision:<9} {row.batch:>5} {row.threads:>7} "
            f"{row.median_ms:>10.2f} {row.p10_ms:>9.2f} {row.p90_ms:>9.2f}"
        )
    lines += ["", "ratio of medians, with a bootstrap interval of 95 %"]
    for ratio in ratios:
        lines.append(
            f"{ratio.model:<26} / {ratio.baseline:<30} {ratio.backend:<8} {ratio.precision:<5} "
            f"batch {ratio.batch:<4} threads {ratio.threads:<3} "
            f"{ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
        )
    return "\n".join(lines if ratios else lines[:-2])


Times = dict[tuple[str, Backend], list[float]]


def _measure_group(
    competitors: Sequence[Competitor],
    setting: Setting,
    options: LatencyOptions,
    stopwatch: Stopwatch,
) -> Times:
    if "compile" in options.backend:
        torch.compiler.reset()  # compile anew for this batch and these threads
    runs: dict[tuple[str, Backend], Callable[[], Tensor]] = {}
    for competitor, backend in itertools.product(competitors, options.backend):
        runs[competitor.name, backend] = _run(competitor, backend, setting, options)
    return measure(runs, options.plan, stopwatch)


def _run(
    competitor: Competitor, backend: Backend, setting: Setting, options: LatencyOptions
) -> Callable[[], Tensor]:
    """Return a call of the model on the next of a few batches; it has run once already."""
    module: Callable[[Tensor], Tensor] = competitor.module
    if backend == "compile":
        module = torch.compile(competitor.module, dynamic=False)
    generator = torch.Generator().manual_seed(options.seed)
    shape = (setting.batch, *competitor.input_size)
    inputs = itertools.cycle(
        [
            torch.randn(shape, generator=generator).to(options.device, DTYPES[setting.precision])
            for _ in range(NUM_INPUTS)
        ]
    )
    module(next(inputs))

    def run() -> Tensor:
        return module(next(inputs))

    return run


def _rows(
    times: Times,
    setting: Setting,
    sizes: dict[str, tuple[int, int, int]],
    environment: Environment,
) -> list[Row]:
    return [
        Row(
            what="latency",
            model=model,
            backend=backend,
            **asdict(setting),
            img_size=f"{sizes[model][1]}x{sizes[model][2]}",
            **asdict(environment),
            **asdict(summarise(times_ms)),
        )
        for (model, backend), times_ms in times.items()
    ]


def _ratios(times: Times, setting: Setting, options: LatencyOptions) -> list[RatioRow]:
    return [
        RatioRow(
            what="latency",
            model=model,
            baseline=baseline,
            backend=backend,
            **asdict(setting),
            **asdict(ratio_of_medians(times[model, backend], times[baseline, backend])),
        )
        for backend in options.backend
        for model, baseline in pairs_of(options.models, options.baseline)
    ]


if __name__ == "__main__":
    sys.exit(main())
