"""How long it takes from nothing to a first answer, against timm's DeiT.

    python -m benchmarks.startup
    python -m benchmarks.startup --quick

Each measurement is a new process, in interleaved rounds. Its stages: import of torch, of timm, of
this package; `create_model(..., pretrained=True)` from a local file; the first prediction for one
image and a later one. `warm` finds compiled bytecode, as every run but the first does. `cold`
finds none, as the first run after an installation: it compiles all it imports. In both the files
may lie in the page cache, which cannot be emptied without being root; after a reboot the disk's
time comes on top. Extraction is measured beside: a supernet's file opened, one subnet cut out and
made a network. All weights are random and written by this command.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.measure.options import require_positive, run_command, shortened
from benchmarks.measure.results import RESULTS, save_rows
from benchmarks.measure.rows import Environment, Row, Setting, current_environment, timed
from benchmarks.measure.timing import orders, summarise

PROGRAM = "python -m benchmarks.startup"
ROWS = "startup.csv"

State = Literal["warm", "cold"]

_log = logging.getLogger("benchmarks.startup")


@dataclass(frozen=True, slots=True)
class StartupOptions:
    """Time new processes up to their first prediction."""

    models: tuple[str, ...] = ("autoformer_small", "deit_small_patch16_224")  # who competes
    supernet: tuple[str, ...] = ("small",)  # spaces of whose supernet a subnet is extracted
    state: tuple[State, ...] = ("warm", "cold")  # with or without compiled bytecode
    threads: int = 2  # of torch
    rounds: int = 5  # processes of each kind
    quick: bool = False  # one warm round of nano, where nothing else is asked for
    save: bool = False  # keep the rows in --results
    results: Path = RESULTS  # folder of the file of rows


QUICK = {
    "models": ("autoformer_nano", "test_vit"),
    "supernet": ("nano",),
    "state": ("warm",),
    "rounds": 1,
}


@dataclass(frozen=True, slots=True)
class Job:
    """One kind of process: what it does, with which weights, with or without bytecode."""

    kind: Literal["zoo", "timm", "extract"]
    name: str
    weights: Path
    state: State


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print; 2 with one line on stderr where the input is wrong."""
    return run_command(PROGRAM, StartupOptions, argv, _work)


def _work(options: StartupOptions) -> tuple[str, dict[str, Any]]:
    rows = measure_startup(options)
    if options.save:
        save_rows(options.results / ROWS, rows)
    return format_table(rows), {"what": "startup", "rows": [asdict(row) for row in rows]}


def measure_startup(options: StartupOptions) -> list[Row]:
    """Run the processes that the options ask for.

    Returns:
        A row for each model, state and stage; for each supernet those of loading and extraction.

    Raises:
        ValueError: an option is out of its range, or a name is unknown.
        OSError: a process failed.
    """
    from autoformer_zoo.published import SPACES
    from benchmarks.measure.competitors import split_spec

    options = shortened(options, QUICK) if options.quick else options
    require_positive("rounds", (options.rounds,))
    require_positive("threads", (options.threads,))
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
        for order in orders(jobs, options.rounds, seed=0):
            for job in order:
                _log.info("%s, %s", job.name, job.state)
                times[job].append(_run(job, options.threads))
    return _rows(times, options.threads, current_environment("cpu"))


def _write_weights(options: StartupOptions, folder: Path) -> dict[str, Path]:
    """Write random weights of every model and supernet, as `pretrained=True` finds them."""
    import timm
    import torch
    from safetensors.torch import save_file

    from autoformer_zoo.published import SPACES
    from autoformer_zoo.weights.checkpoint import SupernetWeights, save_supernet
    from autoformer_zoo.weights.layouts import Architecture

    files = {}
    for name in options.models:
        files[name] = folder / f"{name}.safetensors"
        save_file(timm.create_model(name).state_dict(), files[name])
    for name in options.supernet:
        space = SPACES[name]
        sides = (space.img_size, space.img_size), (space.patch_size, space.patch_size)
        net = Architecture(space.supernet, *sides, in_chans=3, num_classes=space.num_classes)
        tensors = {key: 0.02 * torch.randn(shape) for key, shape in net.shapes().items()}
        weights = SupernetWeights(tensors, space.supernet, "prefix", *sides, 3, space.num_classes)
        files[name] = folder / f"supernet-{name}.safetensors"
        save_supernet(weights, files[name])
    return files


def _kind(name: str) -> Literal["zoo", "timm", "extract"]:
    from autoformer_zoo.published import SPACES
    from benchmarks.measure.competitors import has_forms

    if name in SPACES:
        return "extract"
    return "zoo" if has_forms(name) else "timm"


def _run(job: Job, threads: int) -> dict[str, float]:
    """Run one process and return its stages in ms."""
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-W", "ignore"]
    with tempfile.TemporaryDirectory() as empty:
        if job.state == "cold":
            command += ["-X", f"pycache_prefix={empty}"]
        command += ["-m", "benchmarks.measure.startup_child", job.kind, job.name, str(job.weights)]
        done = subprocess.run(
            command, env=environment, cwd=empty, capture_output=True, text=True, check=False
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise OSError(f"starting {job.name} failed: {last}")
    stages: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return stages


def _rows(
    times: Mapping[Job, Sequence[Mapping[str, float]]], threads: int, environment: Environment
) -> list[Row]:
    rows = []
    setting = Setting("fp32", 1, threads)
    for job, runs in times.items():
        model = f"supernet-{job.name}" if job.kind == "extract" else job.name
        for stage in runs[0]:
            summary = summarise([run[stage] for run in runs])
            rows.append(timed(stage, model, summary, setting, environment, job.state))
    return rows


def format_table(rows: Sequence[Row]) -> str:
    """Return the rows as lines of text."""
    lines = [f"{'model':<26} {'state':<6} {'stage':<22} {'median ms':>10} {'p10':>9} {'p90':>9}"]
    lines += [
        f"{row.model:<26} {row.input:<6} {row.what:<22} {row.median:>10.1f} {row.p10:>9.1f} "
        f"{row.p90:>9.1f}"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
