"""Images per second and peak memory of a supernet step, by form of the attention and precision.

    python -m benchmarks.train_step --space nano --batch-size 128 --save
    python -m benchmarks.train_step --space tiny --batch-size 16 --precision fp32 bf16 --save

Forward and backward pass of one random subnet a round, the same for all competitors, without data
loading and optimizer, which are the same for all of them: what a training step does in
`autoformer_zoo.network.supernet`.
The explicit form in fp32 is what the official code computes. "decomposed-checkpointed" runs every
block again in the backward pass, as `--grad-checkpointing` does in training. Peak memory is
measured apart from time, in processes of their own on the CPU. The last line is one JSON document.
"""

from __future__ import annotations

import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from autoformer_zoo.network.supernet import put_tensors
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.weights.slicing import slice_supernet
from benchmarks.measure.memory import MIB
from benchmarks.measure.options import run_command
from benchmarks.measure.results import RESULTS, save_rows
from benchmarks.measure.rows import (
    RatioRow,
    Row,
    Setting,
    compared,
    current_environment,
    rate,
    single,
    timed,
)
from benchmarks.measure.timing import (
    Plan,
    cuda_stopwatch,
    measure,
    ratio_of_medians,
    require_device,
    summarise,
    wall_stopwatch,
)

PROGRAM = "python -m benchmarks.train_step"
ROWS, RATIOS = "training.csv", "training_ratios.csv"
WHAT = "supernet step"
Form = Literal["explicit", "augmented", "decomposed", "decomposed-checkpointed"]
Precision = Literal["fp32", "bf16", "fp16"]
BASELINE: tuple[Form, Precision] = ("explicit", "fp32")


@dataclass(frozen=True, slots=True)
class StepOptions:
    """Measure a supernet training step.

    Raises:
        ValueError: the space is unknown, or a number is out of its range.
    """

    space: str = "nano"
    """Which search space."""
    batch_size: int = 128
    """Images a step."""
    precision: tuple[Precision, ...] = ("fp32",)
    """Of the forward and backward pass; half precisions by autocast."""
    form: tuple[Form, ...] = get_args(Form)
    """Of the attention; "-checkpointed" with the blocks run again in the backward pass."""
    rounds: int = 10
    """Random subnets, each timed in every form and precision."""
    seconds: float | None = None
    """Start no further round after this long."""
    device: str = "cpu"
    """Where to run: cpu or cuda."""
    threads: int | None = None
    """Of PyTorch; its own choice where not given."""
    memory: bool = True
    """Measure peak memory too."""
    save: bool = False
    """Keep the rows in the folder of results."""
    results: Path = RESULTS
    """Folder of the files of rows."""

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise ValueError(
                f"space {self.space!r} is unknown; expected one of {', '.join(SPACES)}"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; expected 1 or more")

    @property
    def competitors(self) -> list[tuple[Form, Precision]]:
        """Forms and precisions, with the explicit form in each of them."""
        wanted = [(form, precision) for precision in self.precision for form in self.form]
        return list(dict.fromkeys([*wanted, *(("explicit", p) for p in self.precision), BASELINE]))


class Step:
    """A supernet step that can be run again and again.

    Args:
        space: the supernet, and where subnets are drawn.
        form: of the attention.
        precision: of the forward and backward pass.
        batch_size: images.
        device: where to run.
    """

    def __init__(
        self, space: SearchSpace, form: Form, precision: str, batch_size: int, device: str
    ) -> None:
        torch.manual_seed(0)
        attention, _, checkpointed = form.partition("-")
        sizes = {"img_size": space.img_size, "patch_size": space.patch_size}
        self._arguments: dict[str, Any] = {
            **sizes,
            "num_classes": space.num_classes,
            "attention": attention,
        }
        self._checkpointed = bool(checkpointed)
        self._space = space
        self._weights = AutoFormer(space.supernet, **self._arguments).to(device).train()
        self._half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self._images = torch.randn(batch_size, 3, space.img_size, space.img_size, device=device)
        self._labels = torch.arange(batch_size, device=device) % space.num_classes

    def run(self, subnet: SubnetConfig) -> Tensor:
        """Do the forward and backward pass of a subnet; returns its loss."""
        self._weights.zero_grad()
        sliced = slice_supernet(
            dict(self._weights.named_parameters()), self._space.supernet, subnet, "prefix"
        )
        network = AutoFormer(subnet, device="meta", **self._arguments).train()
        network.set_grad_checkpointing(self._checkpointed)
        put_tensors(network, sliced.__getitem__)
        with torch.autocast(self._images.device.type, self._half, enabled=self._half is not None):
            logits = network(self._images)
        loss = F.cross_entropy(logits.float(), self._labels)
        loss.backward()
        return loss.detach()


def measure_step(options: StepOptions) -> tuple[list[Row], list[RatioRow]]:
    """Time a training step of random subnets in interleaved rounds.

    Returns:
        Rows of each competitor; ratios to the explicit form in fp32 and in the same precision.

    Raises:
        ValueError: there is no such device.
    """
    require_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    space, names = SPACES[options.space], options.competitors
    peaks = {name: peak_bytes(options, *name) for name in names} if options.memory else {}

    def competitor(form: Form, precision: Precision) -> Callable[[], object]:
        step = Step(space, form, precision, options.batch_size, options.device)
        subnets = drawn(space)
        return lambda: step.run(next(subnets))

    plan = Plan(options.rounds, options.seconds, warmup=1, settle=0)
    stopwatch = cuda_stopwatch() if options.device == "cuda" else wall_stopwatch()
    times = measure({name: competitor(*name) for name in names}, plan, stopwatch)
    environment = current_environment(options.device)
    rows, ratios = [], []
    for form, precision in names:
        spent = times[form, precision]
        setting = Setting(precision, options.batch_size, torch.get_num_threads())
        place = f"{space.img_size}x{space.img_size}"
        row = timed(WHAT, options.space, summarise(spent), setting, environment, place, form)
        rows += [row, rate(row, "throughput", options.batch_size, "images/s")]
        if peak := peaks.get((form, precision)):
            memory = ("peak_memory", options.space, peak / MIB, "MiB")
            rows.append(single(*memory, setting, environment, form, place))
        for baseline in dict.fromkeys((BASELINE, ("explicit", precision))):
            if (form, precision) != baseline:
                ratio = ratio_of_medians(spent, times[baseline])
                ratios.append(compared(row, " ".join(baseline), ratio))
    return rows, ratios


def drawn(space: SearchSpace) -> Iterator[SubnetConfig]:
    """Yield random subnets, the same at every call: all competitors run the same in a round."""
    rng = random.Random(0)
    while True:
        yield space.sample(rng)


def peak_bytes(options: StepOptions, form: Form, precision: Precision) -> float:
    """Measure the peak memory of a step of the largest subnet, beyond what was used before.

    On the CPU in a fresh process, whose peak the operating system tells.
    """
    values = (options.space, form, precision, str(options.batch_size), options.device)
    command = [sys.executable, "-m", "benchmarks.train_step", "--child", *values]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def child(space: str, form: Form, precision: str, batch_size: int, device: str) -> float:
    """Return the peak memory of a step in bytes beyond what was used before it."""
    torch.set_num_threads(1)
    step = Step(SPACES[space], form, precision, batch_size, device)
    if device == "cuda":
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step.run(SPACES[space].largest)
        return float(torch.cuda.max_memory_allocated() - held)
    before = _peak_rss()
    step.run(SPACES[space].largest)
    return float(_peak_rss() - before)


def _peak_rss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def format_table(rows: Sequence[Row], ratios: Sequence[RatioRow]) -> str:
    """Return a line for each competitor, as text."""
    found = {(row.what, row.backend, row.precision): row.median for row in rows}
    lines = []
    for row in rows:
        if row.what != WHAT:
            continue
        key = (row.backend, row.precision)
        against = [
            f"{each.ratio:.3f} [{each.low:.3f}, {each.high:.3f}] of {each.baseline}'s time"
            for each in ratios
            if (each.backend, each.precision) == key
        ]
        memory = found.get(("peak_memory", *key))
        held = "" if memory is None else f"{memory:8.0f} MiB"
        speed = found[("throughput", *key)]
        told = f"{row.backend:24s} {row.precision} {speed:8.1f} images/s{held}"
        lines.append(f"{told}   {', '.join(against)}")
    return "\n".join(lines)


def _work(options: StepOptions) -> tuple[str, dict[str, Any]]:
    rows, ratios = measure_step(options)
    if options.save:
        save_rows(options.results / ROWS, rows)
        save_rows(options.results / RATIOS, ratios)
    document = {"rows": [asdict(row) for row in rows], "ratios": [asdict(row) for row in ratios]}
    return format_table(rows, ratios), {"what": WHAT, **document}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["--child"]:
        space, form, precision, batch_size, device = words[1:]
        print(child(space, form, precision, int(batch_size), device))  # type: ignore[arg-type]
        return 0
    return run_command(PROGRAM, StepOptions, words, _work)


if __name__ == "__main__":
    sys.exit(main())
