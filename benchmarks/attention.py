"""What relative position costs in attention: its exact forms against attention without it.

    python -m benchmarks.attention                     # all forms, grids of 7 to 64, 3 to 10 heads
    python -m benchmarks.attention --quick             # under a minute
    python -m benchmarks.attention --grid 14 --heads 3 --form plain plain-96 plain-128 augmented

`plain` is scaled_dot_product_attention at head width 64, without relative position; `plain-96` at
head width 96, which is what the augmented form's extra channels come to at 14 x 14. Times of all
forms are interleaved for each grid and number of heads. Peak memory is what one call adds to its
operands. The error is the largest difference to the augmented form in float64, which tests hold to
the explicit one to 1e-12, over the largest value; that of `plain` is to itself in float64. A form
that would need more memory than `--limit-mib` is not run: its row holds the estimate and says so.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from autoformer_zoo.network.attention import relpos_attention
from autoformer_zoo.network.relpos import split_tables
from autoformer_zoo.network.workspace import augmented, is_plain_inference
from autoformer_zoo.space import HEAD_DIM, NUM_REL_POS
from benchmarks.measure.competitors import DTYPES, thread_count
from benchmarks.measure.memory import MIB, PeakMemory
from benchmarks.measure.options import require_positive, run_command, shortened
from benchmarks.measure.results import RESULTS, save_rows
from benchmarks.measure.rows import Environment, Row, Setting, current_environment, single, timed
from benchmarks.measure.timing import (
    Plan,
    Stopwatch,
    cuda_stopwatch,
    measure,
    require_device,
    summarise,
    wall_stopwatch,
)

PROGRAM = "python -m benchmarks.attention"
ROWS = "attention.csv"
SDPA = "_scaled_dot_product_"

Form = Literal["plain", "plain-96", "plain-128", "explicit", "decomposed", "augmented"]

_log = logging.getLogger("benchmarks.attention")


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """Time one layer's attention, between the projections, in its forms."""

    form: tuple[Form, ...] = ("plain", "explicit", "decomposed", "augmented")  # who competes
    grid: tuple[int, ...] = (7, 10, 14, 20, 24, 28, 32, 48, 64)  # patches a side
    heads: tuple[int, ...] = (3, 6, 10)  # of 64 channels
    batch_size: int = 1  # images
    threads: int = 2  # of torch, on the CPU
    device: Literal["cpu", "cuda"] = "cpu"  # where to run
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of all operands
    limit_mib: int = 2048  # run no form that would need more memory
    rounds: int = 30  # timed calls of each form, at most
    seconds: float = 3.0  # for each grid and number of heads, about
    quick: bool = False  # small grids in few rounds, where nothing else is asked for
    save: bool = False  # keep the rows in --results
    results: Path = RESULTS  # folder of the files of rows


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
    """Parse, measure, print; 2 with one line on stderr where the input is wrong."""
    return run_command(PROGRAM, AttentionOptions, argv, _work)


def _work(options: AttentionOptions) -> tuple[str, dict[str, Any]]:
    rows: list[Row] = []
    for more in measure_attention(options):
        if options.save:
            save_rows(options.results / ROWS, more)
        rows += more
    return format_table(rows), {"what": "attention", "rows": [asdict(row) for row in rows]}


def measure_attention(options: AttentionOptions) -> Iterator[list[Row]]:
    """Measure what the options ask for, one grid and number of heads after the other.

    Yields:
        Rows of latency, peak memory and error of each form.

    Raises:
        ValueError: an option is out of its range, or there is no CUDA.
    """
    options = shortened(options, QUICK) if options.quick else options
    for name in ("grid", "heads"):
        require_positive(name, getattr(options, name))
    for name in ("batch_size", "threads", "limit_mib"):
        require_positive(name, (getattr(options, name),))
    if not options.form:
        raise ValueError("form is empty; expected at least one")
    plan = Plan(options.rounds, options.seconds, warmup=1)
    require_device(options.device)
    environment = current_environment(options.device)
    stopwatch = cuda_stopwatch() if options.device == "cuda" else wall_stopwatch()
    for heads, side in itertools.product(options.heads, options.grid):
        _log.info("grid %d x %d, %d heads", side, side, heads)
        with thread_count(options.threads), torch.inference_mode():
            yield _measure_grid((side, side), heads, options, plan, stopwatch, environment)


def _measure_grid(
    grid: tuple[int, int],
    heads: int,
    options: AttentionOptions,
    plan: Plan,
    stopwatch: Stopwatch,
    environment: Environment,
) -> list[Row]:
    setting = Setting(options.precision, options.batch_size, options.threads)
    place: dict[str, Any] = {  # what all rows of this grid share
        "setting": setting,
        "environment": environment,
        "backend": "eager",
        "input": f"{grid[0]}x{grid[1]} grid, {heads} heads",
    }
    exact = make_operands(grid, heads, options.batch_size)
    operands = exact.to(options.device, DTYPES[options.precision])
    runs: dict[Form, Callable[[], Tensor]] = {}
    rows = []
    for form in options.form:
        needed = estimated_bytes(form, operands) / MIB
        if needed <= options.limit_mib:
            runs[form] = make_run(form, operands)
            continue
        note = f"estimated; not run, the limit was {options.limit_mib} MiB"
        rows.append(single("peak_memory", form, needed, "MiB", **place, repeats=0, note=note))
    wanted = {_reference(form) for form in runs}
    references = {form: make_run(form, exact)().cpu() for form in wanted}
    kernels = {}
    for form, run in runs.items():
        out = run().double().cpu()  # what is prepared in the first call is not counted below
        reference = references[_reference(form)]
        error = float((out - reference).abs().max() / reference.abs().max())
        rows.append(single("error", form, error, "of the largest value", **place))
        peak = PeakMemory(options.device)
        run()
        if (rise := peak.rise) is not None:
            rows.append(single("peak_memory", form, rise / MIB, "MiB", **place))
        kernels[form] = sdpa_kernel(run)
    for form, times in measure(runs, plan, stopwatch).items():
        summary, where = summarise(times), place["input"]
        rows.append(
            timed("latency", form, summary, setting, environment, where, note=kernels[form])
        )
    return rows


def make_operands(grid: tuple[int, int], heads: int, batch: int) -> Operands:
    """Draw operands in float64, about as large as in a trained network."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, batch, heads, 1 + grid[0] * grid[1], HEAD_DIM)
    qkv = torch.randn(shape, generator=generator, dtype=torch.float64)
    size = (4, NUM_REL_POS, HEAD_DIM)
    tables = 0.2 * torch.randn(size, generator=generator, dtype=torch.float64)
    return Operands(qkv, tables, grid)


def make_run(form: Form, operands: Operands) -> Callable[[], Tensor]:
    """Return a call of one form on operands, prepared as a network prepares it."""
    qkv, tables, grid = (getattr(operands, name) for name in Operands.__slots__)
    if form.startswith("plain"):
        q, k, v = F.pad(qkv, (0, head_width(form) - HEAD_DIM))
        scale = HEAD_DIM**-0.5
        return lambda: F.scaled_dot_product_attention(q, k, v, scale=scale)
    if form == "augmented" and is_plain_inference(tables):
        table_k, table_v = split_tables(tables, grid)
        return lambda: augmented(qkv, table_k, table_v, grid)
    return lambda: relpos_attention(qkv, tables, grid, form=form)  # type: ignore[arg-type]


def head_width(form: str) -> int:
    """Return the head width of `plain` or `plain-WIDTH`."""
    _, _, width = form.partition("-")
    return int(width or HEAD_DIM)


def estimated_bytes(form: Form, operands: Operands) -> float:
    """Estimate from the sizes of its tensors how much memory a form takes at its worst."""
    _, B, H, N, D = operands.qkv.shape
    height, width = operands.grid
    element = operands.qkv.element_size()
    tokens = B * H * N * element
    if (
        form == "explicit"
    ):  # vectors of all pairs: for keys, for values, and a copy in another order
        return 4 * N * N * D * element + 3 * tokens * N  # as measured at 14 x 14 and 20 x 20
    if form == "decomposed":  # bias, logits and weights of all pairs
        return 4 * tokens * N
    if form == "augmented":  # q, k, v and the result with a channel for each row and column
        return 4 * tokens * (D + height + width + 16) + 4 * tokens * (height + width)
    return 4 * tokens * head_width(form)


class _Kernels(TorchDispatchMode):
    """Notes which kernels of scaled_dot_product_attention run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "scaled_dot_product_attention":  # not taken apart before it comes here
            with self:
                return func.decompose(*args, **(kwargs or {}))
        if name.startswith(SDPA):
            self.names.add(name.removeprefix(SDPA))
        return func(*args, **(kwargs or {}))


def sdpa_kernel(run: Callable[[], Tensor]) -> str:
    """Name the kernel that scaled_dot_product_attention picked, "" where it was not called."""
    with _Kernels() as kernels:
        run()
    return ", ".join(sorted(kernels.names))


def format_table(rows: Sequence[Row]) -> str:
    """Return the rows as lines of text, one for each form, grid and number of heads."""
    by_line: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in rows:
        by_line.setdefault(row.key[1:], {})[row.what] = row
    lines = [f"{'form':<11} {'input':<20} {'median ms':>10} {'peak MiB':>9} {'error':>9}  kernel"]
    for figures in by_line.values():
        row = next(iter(figures.values()))
        cells = [
            f"{figures[what].median:{style}}" if what in figures else "-"
            for what, style in (("latency", ".3f"), ("peak_memory", ".1f"), ("error", ".1e"))
        ]
        note = figures.get("latency", row).note
        lines.append(
            f"{row.model:<11} {row.input:<20} {cells[0]:>10} {cells[1]:>9} {cells[2]:>9}  {note}"
        )
    return "\n".join(lines)


def _reference(form: Form) -> Form:
    return form if form.startswith("plain") else "augmented"


if __name__ == "__main__":
    sys.exit(main())
