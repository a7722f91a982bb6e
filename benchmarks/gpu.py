"""All measurements of a GPU in one call of a few minutes, the most important ones first.

    python -m benchmarks.gpu --out runs/gpu --minutes 5
    python -m benchmarks.gpu --out runs/gpu --device cpu --quick     # rehearsal without a GPU

Runs the tests marked `gpu` and then other commands of this folder, each in a process of its own:
one that fails or runs out of time costs the others nothing. A step may take twice its share of the
time that is left, so the last ones run only if time is left over. Rows are saved as each group of
models completes, in `--results`: by default with the published ones, those of a rehearsal in
`--out`. Logs and `summary.json` are written to `--out` after each step.

Hardware, time and result of recorded runs: an H200 whose 16 cores take 10 to 20 s to import torch,
3 minutes. Limits ended all steps; rows of tiny and small at batch 1 and 64 were saved. Give it 10
minutes there.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from autoformer_zoo.cli.command import run_command
from autoformer_zoo.specialization.latency.timing import require_device
from benchmarks.measure.models import DEIT_OF_SIZE
from benchmarks.measure.options import check_positive
from benchmarks.measure.results import RESULTS

_log = logging.getLogger("benchmarks.gpu")

Device = Literal["cuda", "cpu"]
PYTEST = "addopts=--import-mode=importlib"  # the project's own ask for plugins that may be missing
GPU_TESTS = ("tests/test_gpu.py", "tests/benchmarks/test_latency.py")  # all that are marked gpu
GRACE = 5.0  # seconds in which a stopped process may end by itself


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """Run the tests and benchmarks of a GPU within a time limit."""

    out: Path  # folder of the logs and summary.json
    minutes: float = 5.0  # stop after this long
    device: Device = "cuda"  # cpu: a rehearsal
    results: Path | None = None  # folder of the rows; None: benchmarks/results, for cpu --out
    quick: bool = False  # smallest model, few rounds


@dataclass(frozen=True, slots=True)
class Step:
    """One command, and how much of the time it should get in comparison to the others."""

    name: str
    arguments: tuple[str, ...]  # of `python -m`
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended; `code` is None for one that was stopped or not started."""

    name: str
    command: str
    code: int | None
    seconds: float
    limit: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, 1 if a step failed."""
    return run_command("python -m benchmarks.gpu", GpuOptions, argv, _run)


def _run(options: GpuOptions) -> int:
    check_positive(options, "minutes")
    require_device(options.device)
    steps = plan(options)
    options.out.mkdir(parents=True, exist_ok=True)
    outcomes = run_steps(steps, options.out, 60 * options.minutes)
    for outcome in outcomes:
        print(f"{outcome.name:24}{_verdict(outcome):>12}{outcome.seconds:8.1f} s")
    return 1 if any(outcome.code for outcome in outcomes) else 0


def plan(options: GpuOptions) -> list[Step]:
    """List the steps, the most important first."""
    quick = ("--quick",) if options.quick else ()
    device = ("--device", options.device)
    default = RESULTS if options.device == "cuda" else options.out
    save = ("--save", "--results", str(options.results or default))
    precision = "fp32" if options.quick else "bf16"  # some CPUs emulate bf16
    pairs = [*DEIT_OF_SIZE.items()][: 1 if options.quick else None]
    batches = ("1",) if options.quick else ("1", "64", "256")
    # Without CUDA the tests of the benchmarks' own CUDA path fail; the others run on the CPU.
    tests = GPU_TESTS if options.device == "cuda" else GPU_TESTS[:1]
    memory = () if options.quick else ("--memory",)

    def latency(models: Sequence[str], batch: Sequence[str], backend: str) -> tuple[str, ...]:
        return (
            *("benchmarks.latency", "--models", *models, "--batch-size", *batch),
            *("--backend", backend, "--precision", precision, "--seconds", "3"),
            *(*(memory if backend == "eager" else ()), *device, *quick, *save),
        )

    def explicit(pair: tuple[str, str]) -> tuple[str, str, str]:
        return pair[0], pair[1], f"{pair[0]}@explicit"

    steps = [
        # Warnings of versions that the default tier does not run on are no failures here.
        Step("tests", ("pytest", "-q", "-m", "gpu", "-W", "default", "-o", PYTEST, *tests), 2.0),
        *(Step(f"eager {p[0]}", latency(explicit(p), batches, "eager"), 1.5) for p in pairs),
        Step(
            "attention",
            (
                *("benchmarks.attention", "--grid", "7" if options.quick else "14", "--form"),
                *("plain", "plain-96", "plain-128", "explicit", "decomposed", "augmented"),
                *("--batch-size", "1" if options.quick else "64", "--limit-mib", "16384"),
                *("--precision", precision, *device, *quick, *save),
            ),
        ),
        Step(
            "training step",
            (
                *("benchmarks.training.train_step", "--space", "nano" if options.quick else "tiny"),
                *("--batch-size", "2" if options.quick else "128", "--precision", precision),
                *("--rounds", "2" if options.quick else "10", *device, *save),
                *(("--no-memory",) if options.quick else ()),
            ),
        ),
    ]
    # These compile for a minute or more each.
    if options.device == "cuda":
        steps += [Step(f"graphs {p[0]}", latency(p, ("1",), "cudagraphs")) for p in pairs]
    steps += [Step(f"compile {p[0]}", latency(p, batches[-1:], "compile")) for p in pairs]
    return steps


def run_steps(steps: Sequence[Step], out: Path, seconds: float) -> list[Outcome]:
    """Run steps one after the other, and write summary.json after each.

    Args:
        steps: what to run, the most important first.
        out: folder of the logs, NUMBER-NAME.log, and of summary.json.
        seconds: limit of all together. A step gets twice its weight's share of what is left.
    """
    end = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for number, step in enumerate(steps, 1):
        left = max(0.0, end - time.monotonic() - GRACE)
        share = step.weight / sum(s.weight for s in steps[number - 1 :])
        limit = left * min(1.0, 2 * share)
        _log.info("step %d of %d: %s, at most %.0f s", number, len(steps), step.name, limit)
        log = out / f"{number:02}-{step.name.replace(' ', '-')}.log"
        outcomes.append(_run_step(step, log, limit))
        text = json.dumps([asdict(outcome) for outcome in outcomes], indent=1)
        (out / "summary.json").write_text(text, encoding="utf-8")
    return outcomes


def _run_step(step: Step, log: Path, limit: float) -> Outcome:
    command = [sys.executable, "-m", *step.arguments]
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        code: int | None
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
            # As Ctrl-C: rows of complete groups are on the disk, and the command ends in order.
            process.send_signal(signal.SIGINT)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    seconds = time.monotonic() - start
    return Outcome(step.name, " ".join(command), code, round(seconds, 1), round(limit, 1))


def _verdict(outcome: Outcome) -> str:
    if outcome.code is None:
        return "out of time"
    return "done" if outcome.code == 0 else f"failed ({outcome.code})"


if __name__ == "__main__":
    sys.exit(main())
