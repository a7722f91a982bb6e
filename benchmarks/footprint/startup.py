"""How long it takes from nothing to a first answer, against timm's DeiT.

    python -m benchmarks.footprint.startup
    python -m benchmarks.footprint.startup --quick

Each measurement is a new process, in interleaved rounds. Its phases: import of torch, of timm, of
this package; `create_model(..., pretrained=True)` from a local file; the first prediction for one
image and a later one. `warm` finds compiled bytecode, as every run but the first does. `cold`
finds none, as the first run after an installation, and compiles everything it imports. In both the
files may be in the page cache, which only root can empty; after a reboot the disk's time is added.
Extraction is a process of its own: open a supernet's file, cut one subnet and make a network of it.
All weights are random and written by this command.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import timm
import torch
from safetensors.torch import save_file

from autoformer_zoo.published import SPACES
from autoformer_zoo.weights.checkpoint import SupernetWeights, save_supernet
from autoformer_zoo.weights.layouts import Architecture
from benchmarks.measure.models import is_zoo_model, split_spec
from benchmarks.measure.options import BenchmarkOptions, check_positive, run_benchmark
from benchmarks.measure.rows import Row, Setting, current_environment, latency_row
from benchmarks.measure.timing import orders

NAME = "footprint.startup"
FILE = "startup"
PHASES = {  # `what` of a row: heading of its column
    "import_torch": "import torch",
    "import_timm": "import timm",
    "import_autoformer_zoo": "import autoformer_zoo",
    "load_supernet": "load_supernet",
    "extract_subnet": "extract_subnet",
    "create_model": "create_model",
    "first_prediction": "first prediction",
    "later_prediction": "a later one",
    "total": "in all, to the first",
}

BytecodeState = Literal["warm", "cold"]
Kind = Literal["zoo", "timm", "extract"]

_log = logging.getLogger("benchmarks.footprint.startup")


@dataclass(frozen=True, slots=True)
class StartupOptions(BenchmarkOptions):
    """Time new processes up to their first prediction."""

    models: tuple[str, ...] = ("autoformer_small", "deit_small_patch16_224")  # models to start
    supernet: tuple[str, ...] = ("small",)  # spaces of whose supernet a subnet is extracted
    state: tuple[BytecodeState, ...] = ("warm", "cold")  # with or without compiled bytecode
    threads: int = 2  # threads of torch
    rounds: int = 5  # processes of each kind
    quick: bool = False  # by default one warm round of nano


QUICK = {
    "models": ("autoformer_nano", "test_vit"),
    "supernet": ("nano",),
    "state": ("warm",),
    "rounds": 1,
}


@dataclass(frozen=True, slots=True)
class Job:
    """One kind of process: what it does, with which weights, with or without bytecode."""

    kind: Kind
    name: str
    weights: Path
    state: BytecodeState


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_benchmark(NAME, StartupOptions, argv, measure_startup, file=FILE, quick=QUICK)


def measure_startup(options: StartupOptions) -> Iterator[list[Row]]:
    """Run the processes that the options ask for.

    Yields:
        For each model or supernet and state a row for each phase.

    Raises:
        ValueError: an option is out of range, or a name is unknown.
        OSError: a process failed.
    """
    check_positive(options, "rounds", "threads")
    for model in options.models:
        split_spec(model)
    for space in options.supernet:
        if space not in SPACES:
            raise ValueError(f"no space {space!r}; expected some of {', '.join(SPACES)}")
    if not options.state or not (options.models or options.supernet):
        raise ValueError("models, supernet or state leave nothing to measure")
    with tempfile.TemporaryDirectory() as folder:
        files = _write_weights(options, Path(folder))
        jobs = [
            Job(_kind(name), name, file, state)
            for name, file in files.items()
            for state in options.state
        ]
        times: dict[Job, list[dict[str, float]]] = {job: [] for job in jobs}
        for order in orders(jobs, options.rounds):
            for job in order:
                _log.info("%s, %s", job.name, job.state)
                times[job].append(_run(job, options.threads))
    yield _rows(times, options.threads)


def _write_weights(options: StartupOptions, folder: Path) -> dict[str, Path]:
    """Write random weights of every model and supernet, where `pretrained=True` finds them."""
    files = {}
    for name in options.models:
        files[name] = folder / f"{name}.safetensors"
        save_file(timm.create_model(name).state_dict(), files[name])
    for name in options.supernet:
        net = Architecture.of_space(SPACES[name])
        tensors = {key: 0.02 * torch.randn(shape) for key, shape in net.shapes().items()}
        files[name] = folder / f"supernet-{name}.safetensors"
        save_supernet(SupernetWeights(tensors, net, "prefix"), files[name])
    return files


def _kind(name: str) -> Kind:
    if name in SPACES:
        return "extract"
    return "zoo" if is_zoo_model(name) else "timm"


def _run(job: Job, threads: int) -> dict[str, float]:
    """Run one process and return its phases in ms."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-W", "ignore"]
    with tempfile.TemporaryDirectory() as empty:
        if job.state == "cold":
            command += ["-X", f"pycache_prefix={empty}"]
        command += [
            "-m",
            "benchmarks.footprint.startup_child",
            job.kind,
            job.name,
            str(job.weights),
        ]
        done = subprocess.run(
            command, env=environment, cwd=empty, capture_output=True, text=True, check=False
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise OSError(f"starting {job.name} failed: {last}")
    phases: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return phases


def _rows(times: Mapping[Job, Sequence[Mapping[str, float]]], threads: int) -> list[Row]:
    environment = current_environment("cpu")
    rows = []
    for job, runs in times.items():
        model = f"supernet-{job.name}" if job.kind == "extract" else job.name
        setting = Setting("fp32", 1, threads, model, input=job.state)
        rows += [
            latency_row(phase, [run[phase] for run in runs], setting, environment)
            for phase in runs[0]
        ]
    return rows


if __name__ == "__main__":
    sys.exit(main())
