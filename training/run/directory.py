"""The run directory: config.json, environment.json, held_out.json, log.jsonl, timing.jsonl.

log.jsonl holds what follows from the config alone, so that a run that was stopped and went on has
the log of one that was not; how long it took stands in timing.jsonl.
"""

from __future__ import annotations

import json
import os
import platform
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision

from autoformer_zoo import __version__
from benchmarks.measure.rows import current_commit
from training.config import TrainConfig, require_same

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
        FileNotFoundError: it is no run directory.
        ValueError: the file is damaged; the text says what is wrong in it.
    """
    path = run / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; expected the directory of a training run")
    try:
        return TrainConfig.from_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def describe_environment(device: torch.device, world: int) -> dict[str, Any]:
    """Say what a run was made with: versions, machine, threads and commit."""
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


def write_text(path: Path, text: str) -> None:
    """Write a small file under a temporary name first, so that it is always whole.

    Raises:
        OSError: it cannot be written; the text has its own name, and nothing is left behind.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def require_writable(path: Path) -> None:
    """Refuse a file that could not be written, before hours are spent on what it shall hold.

    Raises:
        OSError: it is a directory, or its folder is not there or not to be written to.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; expected the name of a file")
    if not path.parent.is_dir():
        raise NotADirectoryError(f"{path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path}: {path.parent} may not be written to; name another file")


def append(path: Path, values: dict[str, Any]) -> None:
    """Add a line of JSON."""
    with path.open("a") as log:
        log.write(json.dumps(values) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a log; one that was cut short ends it."""
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def cut_log(path: Path, step: int) -> None:
    """Forget the lines of steps after `step`, which will be done again."""
    if path.exists():
        kept = [line for line in read_log(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
