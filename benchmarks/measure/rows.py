"""What a benchmark writes down: one flat row per figure, with all that it was measured on.

Every figure is a row: `what` says which quantity, `unit` in what. Nothing here measures; files of
rows are `results.py`, tables and plots from them `report.py`.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import timm
import torch

import autoformer_zoo
from autoformer_zoo.network.packed_linear import processor
from benchmarks.measure.timing import Ratio, Summary


@dataclass(frozen=True, slots=True)
class Environment:
    """Where and when a figure was measured."""

    device: str  # cpu or cuda
    machine: str  # the processor's or the card's own name
    versions: str
    commit: str  # of this repository, with -dirty where files were changed; unknown without git
    date: str  # UTC, ISO 8601


@dataclass(frozen=True, slots=True)
class Setting:
    """What all competitors of a group of rounds have in common."""

    precision: str
    batch: int
    threads: int


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one model in one setting."""

    what: str  # the quantity: latency, peak_memory, ...
    model: str
    backend: str
    precision: str
    batch: int
    threads: int
    input: str  # what went in: height x width in pixels, a grid of patches, a data set
    device: str
    machine: str
    versions: str
    commit: str
    date: str
    median: float
    p10: float
    p90: float
    repeats: int  # 0: not measured, the note says why
    unit: str
    note: str = ""

    @property
    def key(self) -> tuple[str | int, ...]:
        """What a newer row has in common with the one that it replaces."""
        setting = (self.backend, self.precision, self.batch, self.threads, self.input)
        return (self.what, self.model, *setting, self.device, self.machine)


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
    input: str
    device: str
    machine: str
    versions: str
    commit: str
    date: str
    ratio: float
    low: float  # of a bootstrap interval of 95 %
    high: float
    repeats: int  # rounds

    @property
    def key(self) -> tuple[str | int, ...]:
        """What a newer row has in common with the one that it replaces."""
        setting = (self.backend, self.precision, self.batch, self.threads, self.input)
        return (self.what, self.model, self.baseline, *setting, self.device, self.machine)


def single(
    what: str,
    model: str,
    value: float,
    unit: str,
    setting: Setting,
    environment: Environment,
    backend: str = "",
    input: str = "",
    repeats: int = 1,
    note: str = "",
) -> Row:
    """Make the row of a figure that has no distribution: a count, a peak, an accuracy.

    Args:
        what: the quantity.
        model: what it belongs to.
        value: the figure.
        unit: its unit.
        setting: precision, batch and threads.
        environment: where and when.
        backend: what ran the model; "" where that makes no difference.
        input: what went in.
        repeats: measurements, or images, behind the figure.
        note: what a reader has to know besides.
    """
    return Row(
        what=what,
        model=model,
        backend=backend,
        **asdict(setting),
        input=input,
        **asdict(environment),
        median=value,
        p10=value,
        p90=value,
        repeats=repeats,
        unit=unit,
        note=note,
    )


def timed(
    what: str,
    model: str,
    times: Summary,
    setting: Setting,
    environment: Environment,
    input: str,
    backend: str = "eager",
    note: str = "",
) -> Row:
    """Make the row of times, in ms.

    Args:
        what: what took the time.
        model: what it belongs to.
        times: their distribution.
        setting: precision, batch and threads.
        environment: where and when.
        input: what went in.
        backend: what ran the model.
        note: what a reader has to know besides.
    """
    place = (setting, environment, backend, input, times.repeats, note)
    row = single(what, model, times.median_ms, "ms", *place)
    return replace(row, p10=times.p10_ms, p90=times.p90_ms)


def restated(
    row: Row, what: str, values: tuple[float, float, float], unit: str, repeats: int, note: str = ""
) -> Row:
    """Return another figure of the same model, setting and moment.

    Args:
        row: a figure of them.
        what: the quantity.
        values: median, 10th and 90th percentile.
        unit: of these.
        repeats: measurements behind them.
        note: what a reader has to know besides.
    """
    median, p10, p90 = values
    return replace(
        row,
        what=what,
        median=median,
        p10=p10,
        p90=p90,
        unit=unit,
        repeats=repeats,
        note=note,
    )


def rate(row: Row, what: str, amount: float, unit: str) -> Row:
    """Return how much a second the times of a row are; the 10th percentile is the slow end.

    Args:
        row: times in ms.
        what: the quantity.
        amount: what one call does, in `unit` times a second.
        unit: of the result.
    """
    values = (1e3 * amount / row.median, 1e3 * amount / row.p90, 1e3 * amount / row.p10)
    return restated(row, what, values, unit, row.repeats)


def compared(row: Row, baseline: str, ratio: Ratio) -> RatioRow:
    """Return the row of a ratio.

    Args:
        row: times of what is compared.
        baseline: what it is compared with, in the same rounds.
        ratio: time over the baseline's.
    """
    shared = {f.name: getattr(row, f.name) for f in fields(RatioRow) if hasattr(row, f.name)}
    return RatioRow(**shared, baseline=baseline, **asdict(ratio))


def current_environment(device: str, packages: Sequence[str] = ()) -> Environment:
    """Describe this machine.

    Args:
        device: where the figures come from, "cpu" or "cuda".
        packages: distributions whose versions matter, beside Python, torch, timm and this one.
    """
    versions = (
        f"python {platform.python_version()}, torch {torch.__version__}, "
        f"timm {timm.__version__}, autoformer_zoo {autoformer_zoo.__version__}"
    )
    versions += "".join(f", {package} {version(package)}" for package in packages)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Environment(device, _machine_name(device), versions, current_commit(), now)


def _machine_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor('model name') or platform.machine()}, {os.cpu_count()} CPUs"


def current_commit(folder: Path = Path(__file__).parent) -> str:
    """Name the commit of the repository around a folder, with -dirty where files were changed.

    Results do not count: the rows that one benchmark saves do not change what the next one runs.
    """
    status = ("status", "--porcelain", "--untracked-files=no", "--")
    try:
        commit, changed = (
            subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (
                ("rev-parse", "--short", "HEAD"),
                (*status, ":/", ":(exclude,top)benchmarks/results"),
            )
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or not in a repository
        return "unknown"
    return f"{commit}-dirty" if changed else commit
