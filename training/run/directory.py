"""The run directory: config.json, environment.json, held_out.json, log.jsonl, timing.jsonl.

log.jsonl holds what follows from the config alone, so that a run that was stopped and resumed has
the log of an undisturbed one; how long it took is kept apart, in timing.jsonl.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision

from autoformer_zoo import __version__
from benchmarks.measure.rows import current_commit
from training.settings.config import TrainConfig, require_same

LOG = "log.jsonl"
TIMING = "timing.jsonl"
HELD_OUT = "held_out_acc1_percent"  # key of a line: top-1 by the name of the subnet


def open_run(run: Path, config: TrainConfig, device: torch.device, world: int) -> None:
    """Make the run directory, or check that it holds a run of this very config.

    Raises:
        ValueError: it holds another one; the text shows the differences.
    """
    path = run / "config.json"
    if path.exists():
        require_same(asdict(read_config(run)), asdict(config), run)
        return
    run.mkdir(parents=True, exist_ok=True)
    environment = describe_environment(device, world)
    write_text(run / "environment.json", json.dumps(environment, indent=1) + "\n")
    write_text(path, config.to_json() + "\n")


def read_config(run: Path) -> TrainConfig:
    """Read the config of a run.

    Raises:
        FileNotFoundError: it is not a run directory.
        ValueError: the file is damaged; the text says what is wrong in it.
    """
    path = run / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected the directory of a training run")
    try:
        return TrainConfig.from_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def describe_environment(device: torch.device, world: int) -> dict[str, Any]:
    """Return what a run is made with: versions, machine, threads and commit."""
    is_cuda = device.type == "cuda"
    return {
        "autoformer_zoo": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "processes": world,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "commit": current_commit(),
    }


@contextmanager
def write_atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to; it becomes `path` if the block ends without an error.

    A file is thus whole or not there at all, whenever the process is killed.

    Raises:
        OSError: it cannot be written; the text has the file's own name, and nothing is left behind.
    """
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")  # savers go by the suffix
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:  # not of the system: it has a text of its own
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a small file; errors as in `write_atomic`."""
    with write_atomic(path) as temporary:
        temporary.write_text(text)


def append(path: Path, values: dict[str, Any]) -> None:
    """Add a line of JSON."""
    with path.open("a") as log:
        log.write(json.dumps(values) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log but for a last one that a kill cut short.

    Raises:
        ValueError: a line is damaged; the text has its number.
    """
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            lines.append(_checked_line(json.loads(text)))
        # Any damage: wrong types, thousands of brackets.
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path} is damaged (line {number}: {error}); delete that line"
            ) from None
    return lines


def last_accuracy(run: Path) -> dict[str, float]:
    """Return the last held-out top-1 of a run, in percent by subnet; empty without one."""
    evaluated = [line[HELD_OUT] for line in read_log(run / LOG) if HELD_OUT in line]
    return evaluated[-1] if evaluated else {}


def cut_log(path: Path, step: int) -> None:
    """Discard the lines of steps after `step`, which will be computed again."""
    if path.exists():
        kept = [line for line in read_log(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _checked_line(line: Any) -> dict[str, Any]:
    """Check that a line has what the curve and resuming read."""
    if not isinstance(line, dict):
        raise ValueError("not an object")
    numbers = [line.get("step")]
    if "loss" in line or HELD_OUT in line:
        numbers += [line.get("img_size"), line.get("loss", 0.0)]
        numbers += line.get(HELD_OUT, {}).values()
    if not all(isinstance(number, (int, float)) for number in numbers):
        raise ValueError("a number is missing")
    return line
