"""What relative position costs in attention: its exact forms against attention without it.

    python -m benchmarks.attention                     # all forms, grids of 7 to 64, 3 to 10 heads
    python -m benchmarks.attention --quick             # under a minute
    python -m benchmarks.attention --grid 14 --heads 3 --form plain plain-96 plain-128 augmented

`plain` is scaled_dot_product_attention at head width 64, without relative position; `plain-96` has
head width 96, which is what the augmented form's extra channels come to at 14 x 14. Times of all
forms are interleaved for each grid and number of heads. Peak memory is what one call adds to its
operands. The error is the largest difference from the augmented form in float64, which tests verify
against the explicit one to 1e-12, over the largest value; the error of `plain` is measured from
itself in float64. A form that would need more memory than `--limit-mib` is not run: its row holds
an estimate and says so.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.profiler import profile

from autoformer_zoo.network.attention import relpos_attention
from autoformer_zoo.network.workspace import augmented, is_plain_inference
from autoformer_zoo.space import HEAD_DIM, NUM_REL_POS
from autoformer_zoo.specialization.latency.timing import stopwatch_for, thread_count
from benchmarks.measure.memory import MIB, peak_of_call
from benchmarks.measure.models import DTYPES, TorchPrecision
from benchmarks.measure.options import BenchmarkOptions, check_positive, run_benchmark
from benchmarks.measure.rows import (
    Environment,
    Row,
    Setting,
    current_environment,
    latency_row,
    make_row,
)
from benchmarks.measure.timing import TimingConfig, measure

NAME = "attention"
SDPA = "_scaled_dot_product_"

LayerForm = Literal["plain", "plain-96", "plain-128", "explicit", "decomposed", "augmented"]

_log = logging.getLogger("benchmarks.attention")


@dataclass(frozen=True, slots=True)
class AttentionOptions(BenchmarkOptions):
    """Time one layer's attention, between the projections, in its forms."""

    form: tuple[LayerForm, ...] = ("plain", "explicit", "decomposed", "augmented")  # forms to time
    grid: tuple[int, ...] = (7, 10, 14, 20, 24, 28, 32, 48, 64)  # patches a side
    heads: tuple[int, ...] = (3, 6, 10)  # number of heads, of 64 channels
    batch_size: int = 1  # images a call
    threads: int = 2  # threads of torch, on the CPU
    device: Literal["cpu", "cuda"] = "cpu"  # where to run
    precision: TorchPrecision = "fp32"  # precision of all operands
    limit_mib: int = 2048  # run no form that would need more memory
    rounds: int = 30  # timed calls of each form, at most
    seconds: float = 3.0  # time for each grid and number of heads, about
    quick: bool = False  # by default small grids in few rounds


QUICK = {"grid": (7, 14, 20), "heads": (3,), "rounds": 5, "seconds": 2.0}


@dataclass(frozen=True, slots=True, eq=False)
class Operands:
    """What one layer's attention takes: q, k and v (3, B, H, N, 64), tables (4, R, 64)."""

    qkv: Tensor
    tables: Tensor
    grid: tuple[int, int]

    def to(self, device: str, dtype: torch.dtype) -> Operands:
        """Return the same numbers elsewhere, or in another precision."""
        return Operands(self.qkv.to(device, dtype), self.tables.to(device, dtype), self.grid)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_benchmark(NAME, AttentionOptions, argv, measure_attention, quick=QUICK)


def measure_attention(options: AttentionOptions) -> Iterator[list[Row]]:
    """Measure what the options ask for, one grid and number of heads after the other.

    Yields:
        Rows of latency, peak memory and error of each form.

    Raises:
        ValueError: an option is out of range, or there is no CUDA.
    """
    check_positive(options, "grid", "heads", "batch_size", "threads", "limit_mib")
    if not options.form:
        raise ValueError("form is empty; expected at least one")
    timing = TimingConfig(options.rounds, options.seconds, warmup=1)
    environment = current_environment(options.device)
    for heads, side in itertools.product(options.heads, options.grid):
        _log.info("grid %d x %d, %d heads", side, side, heads)
        with thread_count(options.threads), torch.inference_mode():
            yield _measure_grid((side, side), heads, options, timing, environment)


def _measure_grid(
    grid: tuple[int, int],
    heads: int,
    options: AttentionOptions,
    timing: TimingConfig,
    environment: Environment,
) -> list[Row]:
    place = f"{grid[0]}x{grid[1]} grid, {heads} heads"
    shared = Setting(options.precision, options.batch_size, options.threads, input=place)
    settings = {form: replace(shared, model=form) for form in options.form}
    exact = make_operands(grid, heads, options.batch_size)
    operands = exact.to(options.device, DTYPES[options.precision])
    calls: dict[LayerForm, Callable[[], Tensor]] = {}
    rows = []
    for form in options.form:
        needed = estimated_bytes(form, operands) / MIB
        if needed <= options.limit_mib:
            calls[form] = attention_call(form, operands)
        else:
            note = f"estimated; not run, the limit was {options.limit_mib} MiB"
            setting = settings[form]
            rows.append(make_row("peak_memory", needed, "MiB", setting, environment, 0, note))
    references = {
        form: attention_call(form, exact)().cpu() for form in {_reference(form) for form in calls}
    }
    kernels = {}
    for form, call in calls.items():
        # The first call also prepares constants, which is not counted in the peak of the second.
        out = call().double().cpu()
        reference = references[_reference(form)]
        error = float((out - reference).abs().max() / reference.abs().max())
        rows.append(make_row("error", error, "of the largest value", settings[form], environment))
        if (peak := peak_of_call(call, options.device)) is not None:
            rows.append(make_row("peak_memory", peak / MIB, "MiB", settings[form], environment))
        kernels[form] = sdpa_kernel(call)
    for form, times_ms in measure(calls, timing, stopwatch_for(options.device)).items():
        rows.append(latency_row("latency", times_ms, settings[form], environment, kernels[form]))
    return rows


def make_operands(grid: tuple[int, int], heads: int, batch: int) -> Operands:
    """Draw operands in float64, about as large as in a trained network."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, batch, heads, 1 + grid[0] * grid[1], HEAD_DIM)
    qkv = torch.randn(shape, generator=generator, dtype=torch.float64)
    size = (4, NUM_REL_POS, HEAD_DIM)
    tables = 0.2 * torch.randn(size, generator=generator, dtype=torch.float64)
    return Operands(qkv, tables, grid)


def attention_call(form: LayerForm, operands: Operands) -> Callable[[], Tensor]:
    """Return a call of one form on operands, prepared as a network prepares it."""
    qkv, tables, grid = operands.qkv, operands.tables, operands.grid
    if form.startswith("plain"):
        q, k, v = F.pad(qkv, (0, head_width(form) - HEAD_DIM))
        scale = HEAD_DIM**-0.5
        return lambda: F.scaled_dot_product_attention(q, k, v, scale=scale)
    if form == "augmented" and is_plain_inference(tables):
        return lambda: augmented(qkv, tables, grid)
    return lambda: relpos_attention(qkv, tables, grid, form=form)  # type: ignore[arg-type]


def head_width(form: str) -> int:
    """Return the head width of `plain` or `plain-WIDTH`."""
    _, _, width = form.partition("-")
    return int(width or HEAD_DIM)


def estimated_bytes(form: LayerForm, operands: Operands) -> float:
    """Estimate from the sizes of its tensors how much memory a form takes at its peak."""
    _, B, H, N, D = operands.qkv.shape
    height, width = operands.grid
    element = operands.qkv.element_size()
    tokens = B * H * N * element
    if form == "explicit":
        # Vectors of all pairs: for keys, for values, and a copy in another order. The factors were
        # fitted to what was measured at 14 x 14 and 20 x 20.
        return 4 * N * N * D * element + 3 * tokens * N
    if form == "decomposed":  # bias, logits and weights of all pairs
        return 4 * tokens * N
    if form == "augmented":  # q, k, v and the result with a channel for each row and column
        return 4 * tokens * (D + height + width + 16) + 4 * tokens * (height + width)
    return 4 * tokens * head_width(form)


def sdpa_kernel(call: Callable[[], Tensor]) -> str:
    """Return the kernel that scaled_dot_product_attention picked, "" if it was not called."""
    with profile(use_kineto=False) as record:  # Kineto would write to stderr
        call()
    names = {event.key.removeprefix("aten::") for event in record.key_averages()}
    return ", ".join(sorted(n.removeprefix(SDPA) for n in names if n.startswith(SDPA)))


def _reference(form: LayerForm) -> LayerForm:
    return form if form.startswith("plain") else "augmented"


if __name__ == "__main__":
    sys.exit(main())
