"""Pictures per second and peak memory of a supernet step, by form of the attention and precision.

    python -m benchmarks.train_step --space nano --batch-size 128
    python -m benchmarks.train_step --space tiny --batch-size 16 --precision fp32 bf16

Forward and backward pass of one random subnet a round, the same for all competitors, without data
loading and optimizer, which are the same for all of them: what `training.supernet` does in a step.
The explicit form in fp32 is what the official code computes. Peak memory is measured apart from
time, in processes of their own on the CPU. The last line is one JSON document.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.func import functional_call

from autoformer_zoo.attention import AttentionForm
from autoformer_zoo.extract import slice_supernet
from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.vit import AutoFormer
from benchmarks.rows import current_environment
from benchmarks.timing import (
    Plan,
    cuda_stopwatch,
    measure,
    ratio_of_medians,
    summarise,
    wall_stopwatch,
)

Form = Literal["explicit", "augmented", "decomposed"]
Precision = Literal["fp32", "bf16", "fp16"]
BASELINE: tuple[Form, Precision] = ("explicit", "fp32")


@dataclass(frozen=True, slots=True)
class StepRow:
    """One form and precision in one setting."""

    space: str
    form: Form
    precision: Precision
    batch: int
    threads: int
    pictures_per_s: float
    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int
    over_explicit_fp32: float  # speed over that of the explicit form in fp32, in the same rounds
    low: float  # of a bootstrap interval of 95 %
    high: float
    over_explicit: float  # speed over that of the explicit form in the same precision
    peak_mb: float | None  # beyond what was used before the step; None where not measured


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured.

    Raises:
        ValueError: the space is unknown, or a number is out of its range.
    """

    space: str = "nano"
    """Which search space."""
    batch_size: int = 128
    """Pictures a step."""
    precision: tuple[Precision, ...] = ("fp32",)
    """Of the forward and backward pass; half precisions by autocast."""
    form: tuple[Form, ...] = ("explicit", "augmented", "decomposed")
    """Of the attention."""
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
        batch_size: pictures.
        device: where to run.
    """

    def __init__(
        self, space: SearchSpace, form: AttentionForm, precision: str, batch_size: int, device: str
    ) -> None:
        torch.manual_seed(0)
        sizes = {"img_size": space.img_size, "patch_size": space.patch_size}
        self._arguments: dict[str, Any] = {
            **sizes,
            "num_classes": space.num_classes,
            "attention": form,
        }
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
        network: nn.Module = AutoFormer(subnet, device="meta", **self._arguments).train()
        with torch.autocast(self._images.device.type, self._half, enabled=self._half is not None):
            logits = functional_call(network, sliced, self._images, strict=True)
        loss = F.cross_entropy(logits.float(), self._labels)
        loss.backward()
        return loss.detach()


def measure_step(setting: Setting) -> list[StepRow]:
    """Time a training step of random subnets in interleaved rounds; a row for each competitor."""
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    space, names = SPACES[setting.space], setting.competitors
    peaks = {name: peak_mb(setting, *name) for name in names} if setting.memory else {}

    def competitor(form: Form, precision: Precision) -> Callable[[], object]:
        step = Step(space, form, precision, setting.batch_size, setting.device)
        subnets = drawn(space)
        return lambda: step.run(next(subnets))

    plan = Plan(setting.rounds, setting.seconds, warmup=1, settle=0)
    stopwatch = cuda_stopwatch() if setting.device == "cuda" else wall_stopwatch()
    times = measure({name: competitor(*name) for name in names}, plan, stopwatch)
    return [_row(setting, times, form, precision, peaks) for form, precision in names]


def drawn(space: SearchSpace) -> Iterator[SubnetConfig]:
    """Yield random subnets, the same at every call: all competitors run the same in a round."""
    rng = random.Random(0)
    while True:
        yield space.sample(rng)


def peak_mb(setting: Setting, form: Form, precision: Precision) -> float:
    """Measure the peak memory of a step of the largest subnet, beyond what was used before.

    On the CPU in a fresh process, whose peak the operating system tells.
    """
    values = (setting.space, form, precision, str(setting.batch_size), setting.device)
    command = [sys.executable, "-m", "benchmarks.train_step", "--child", *values]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def child(space: str, form: AttentionForm, precision: str, batch_size: int, device: str) -> float:
    """Return the peak memory of a step in MB beyond what was used before it."""
    torch.set_num_threads(1)
    step = Step(SPACES[space], form, precision, batch_size, device)
    if device == "cuda":
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step.run(SPACES[space].largest)
        return (torch.cuda.max_memory_allocated() - held) / 1e6
    before = _peak_rss_mb()
    step.run(SPACES[space].largest)
    return _peak_rss_mb() - before


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _row(
    setting: Setting,
    times: Mapping[tuple[Form, Precision], list[float]],
    form: Form,
    precision: Precision,
    peaks: Mapping[tuple[Form, Precision], float],
) -> StepRow:
    spent = times[form, precision]
    summary, ratio = summarise(spent), ratio_of_medians(times[BASELINE], spent)
    return StepRow(
        setting.space,
        form,
        precision,
        setting.batch_size,
        torch.get_num_threads(),
        1e3 * setting.batch_size / summary.median_ms,
        *(summary.median_ms, summary.p10_ms, summary.p90_ms, summary.repeats),
        *(ratio.ratio, ratio.low, ratio.high),
        ratio_of_medians(times["explicit", precision], spent).ratio,
        peaks.get((form, precision)),
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["--child"]:
        space, form, precision, batch_size, device = words[1:]
        print(child(space, form, precision, int(batch_size), device))  # type: ignore[arg-type]
        return 0
    try:
        setting = tyro.cli(Setting, args=words, prog="python -m benchmarks.train_step")
        rows = measure_step(setting)
    except (ValueError, RuntimeError) as error:
        print(f"python -m benchmarks.train_step: {error}", file=sys.stderr)
        return 2
    for row in rows:
        memory = "" if row.peak_mb is None else f"   {row.peak_mb:7.0f} MB"
        print(
            f"{row.form:10s} {row.precision} {row.pictures_per_s:8.1f} pictures/s   "
            f"{row.over_explicit_fp32:.2f} ({row.low:.2f}-{row.high:.2f}) x{memory}"
        )
    environment = asdict(current_environment(setting.device))
    print(json.dumps({"environment": environment, "rows": [asdict(row) for row in rows]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
