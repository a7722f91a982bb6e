"""What a benchmark writes down: one flat row per figure, with all that it was measured on.

Rows are made by the benchmarks and printed as JSON; nothing here measures.
"""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import timm
import torch

import autoformer_zoo


@dataclass(frozen=True, slots=True)
class Environment:
    """Where and when a figure was measured."""

    device: str  # the processor's or the card's own name
    versions: str
    commit: str  # of this repository, with -dirty where files were changed; unknown without git
    date: str  # UTC, ISO 8601


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: the times of one model in one setting."""

    what: str
    model: str
    backend: str
    precision: str
    batch: int
    threads: int
    img_size: str  # height x width in pixels
    device: str
    versions: str
    commit: str
    date: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int


@dataclass(frozen=True, slots=True)
class RatioRow:
    """One model's median time over that of another in the same setting and rounds."""

    what: str
    model: str
    baseline: str
    backend: str
    precision: str
    batch: int
    threads: int
    ratio: float
    low: float  # of a bootstrap interval of 95 %
    high: float


def current_environment(device: str) -> Environment:
    """Describe this machine, for figures measured on `device` ("cpu" or "cuda")."""
    versions = (
        f"python {platform.python_version()}, torch {torch.__version__}, "
        f"timm {timm.__version__}, autoformer_zoo {autoformer_zoo.__version__}"
    )
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Environment(_device_name(device), versions, current_commit(), now)


def _device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():  # elsewhere platform.processor() is all that there is
        lines = cpuinfo.read_text().splitlines()
        name = next(
            (line.split(": ", 1)[1] for line in lines if line.startswith("model name")), name
        )
    return f"{name}, {os.cpu_count()} CPUs"


def current_commit() -> str:
    """Name the commit of this repository, with -dirty where files were changed."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or not in a repository
        return "unknown"
    return done.stdout.strip()
