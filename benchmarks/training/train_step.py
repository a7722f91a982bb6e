"""Images per second and peak memory of a supernet step, by form of the attention and precision.

    python -m benchmarks.training.train_step --space nano --batch-size 128 --save
    python -m benchmarks.training.train_step --space tiny --batch-size 16 --precision bf16 --save

A step is the forward and backward pass of `autoformer_zoo.network.supernet.Supernet` for one random
subnet a round, the same subnet for all competitors. Data loading and the optimizer, which cost all
of them the same, are left out. The explicit form in fp32 is what the official code computes.
"decomposed-checkpointed" runs every block again in the backward pass, as `--grad-checkpointing`
does in training. Peak memory is measured apart from time, on the CPU in a new process for each.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from autoformer_zoo.network.supernet import Supernet
from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.specialization.latency.timing import (
    Call,
    require_device,
    stopwatch_for,
    thread_count,
)
from benchmarks.measure.memory import MIB, apart, peak_of_call
from benchmarks.measure.models import DTYPES, TorchPrecision
from benchmarks.measure.options import BenchmarkOptions, check_positive, run_benchmark
from benchmarks.measure.rows import (
    Row,
    Setting,
    current_environment,
    latency_row,
    ratio_row,
    throughput_row,
    with_value,
)
from benchmarks.measure.timing import TimingConfig, measure

NAME = "training.train_step"
FILE = "training"  # shared with candidates.py
WHAT = "supernet step"
StepForm = Literal["explicit", "augmented", "decomposed", "decomposed-checkpointed"]
BASELINE: tuple[StepForm, TorchPrecision] = ("explicit", "fp32")


@dataclass(frozen=True, slots=True)
class StepOptions(BenchmarkOptions):
    """Measure a supernet training step."""

    space: str = "nano"  # search space
    batch_size: int = 128  # images a step
    precision: tuple[TorchPrecision, ...] = ("fp32",)  # half precisions by autocast
    form: tuple[StepForm, ...] = get_args(StepForm)  # -checkpointed: blocks run again in backward
    rounds: int = 10  # random subnets, each timed in every form and precision
    seconds: float | None = None  # start no further round after this long
    device: Literal["cpu", "cuda"] = "cpu"  # where to run
    threads: int | None = None  # threads of torch; None: its own choice
    memory: bool = True  # measure peak memory too

    @property
    def competitors(self) -> list[tuple[StepForm, TorchPrecision]]:
        """Forms and precisions, with the explicit form in each of them."""
        wanted = [(form, precision) for precision in self.precision for form in self.form]
        return list(dict.fromkeys([*wanted, *(("explicit", p) for p in self.precision), BASELINE]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_benchmark(NAME, StepOptions, argv, measure_step, file=FILE)


def measure_step(options: StepOptions) -> Iterator[list[Row]]:
    """Time a training step of random subnets in interleaved rounds.

    Yields:
        Rows of each competitor, and its ratios to the explicit form in fp32 and in the same
        precision.

    Raises:
        ValueError: the space is unknown, a number is out of range, or there is no CUDA.
    """
    if options.space not in SPACES:
        expected = ", ".join(SPACES)
        raise ValueError(f"space {options.space!r} is unknown; expected one of {expected}")
    check_positive(options, "batch_size", *(("threads",) if options.threads is not None else ()))
    require_device(options.device)
    space = SPACES[options.space]
    threads = options.threads or torch.get_num_threads()
    environment = current_environment(options.device)

    def call_of(form: StepForm, precision: TorchPrecision) -> Call:
        step = make_step(space, form, precision, options.batch_size, options.device)
        subnets = draw_subnets(space)
        return lambda: step(next(subnets))

    peaks = {
        name: apart(options.device, step_peak, space, *name, options.batch_size, options.device)
        for name in (options.competitors if options.memory else ())
    }
    timing = TimingConfig(options.rounds, options.seconds, warmup=1, settle=0)
    with thread_count(threads):
        calls = {name: call_of(*name) for name in options.competitors}
        times = measure(calls, timing, stopwatch_for(options.device))
    for (form, precision), times_ms in times.items():
        size = f"{space.img_size}x{space.img_size}"
        setting = Setting(precision, options.batch_size, threads, options.space, form, size)
        row = latency_row(WHAT, times_ms, setting, environment)
        rows = [row, throughput_row(row, "throughput", options.batch_size, "images/s")]
        if (peak := peaks.get((form, precision))) is not None:
            rows.append(with_value(row, "peak_memory", peak / MIB, "MiB"))
        for baseline in dict.fromkeys((BASELINE, ("explicit", precision))):
            if (form, precision) != baseline:
                rows.append(ratio_row(row, times_ms, " ".join(baseline), times[baseline]))
        yield rows


def make_step(
    space: SearchSpace, form: StepForm, precision: TorchPrecision, batch_size: int, device: str
) -> Callable[[SubnetConfig], Tensor]:
    """Return a supernet step, which does the forward and backward pass of a subnet.

    Args:
        space: sizes of the supernet.
        form: form of the attention.
        precision: of the forward and backward pass.
        batch_size: images a step.
        device: where to run.

    Returns:
        A function of the subnet, which returns the loss; gradients are in the supernet.
    """
    torch.manual_seed(0)
    attention, _, checkpointed = form.partition("-")
    half = None if precision == "fp32" else DTYPES[precision]
    supernet = Supernet(space, attention=attention).to(device).train()  # type: ignore[arg-type]
    supernet.grad_checkpointing = bool(checkpointed)
    images = torch.randn(batch_size, 3, space.img_size, space.img_size, device=device)
    labels = torch.arange(batch_size, device=device) % space.num_classes

    def step(subnet: SubnetConfig) -> Tensor:
        supernet.zero_grad()
        with torch.autocast(device, half, enabled=half is not None):
            logits = supernet(images, subnet)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        return loss.detach()

    return step


def draw_subnets(space: SearchSpace) -> Iterator[SubnetConfig]:
    """Yield random subnets, the same at every call: all competitors run the same in a round."""
    rng = random.Random(0)
    while True:
        yield space.sample(rng)


def step_peak(
    space: SearchSpace, form: StepForm, precision: TorchPrecision, batch_size: int, device: str
) -> int | None:
    """Return the peak in bytes of a step of the largest subnet; see `memory.apart`."""
    torch.set_num_threads(1)  # each thread has an arena of memory, whose size is left to chance
    step = make_step(space, form, precision, batch_size, device)
    return peak_of_call(lambda: step(space.largest), device)


if __name__ == "__main__":
    sys.exit(main())
