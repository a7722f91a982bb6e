"""What a benchmark writes down: one flat row per figure, with everything it was measured on.

`what` names the quantity and `unit` its unit. Nothing here measures; files of rows are in
`results.py`, the tables and plots made from them in `benchmarks/report`.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import timm
import torch

import autoformer_zoo
from autoformer_zoo.specialization.latency.measure import machine_name
from benchmarks.measure.timing import Spread, ratio_of_medians, summarise


@dataclass(frozen=True, slots=True)
class Environment:
    """Where and when a figure was measured."""

    device: str  # cpu or cuda
    machine: str  # the processor's or the card's own name
    versions: str
    commit: str  # of this repository, with -dirty if files were changed; unknown without git
    date: str  # UTC, ISO 8601


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured: a model, and how it runs.

    A group of rounds shares the first three fields; `dataclasses.replace` fills in the others.
    """

    precision: str
    batch: int
    threads: int
    model: str = ""
    backend: str = "eager"  # what runs the model; "" if that makes no difference
    input: str = ""  # height x width in pixels, a grid of patches, or a data set


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one model in one setting, or, with a baseline, a ratio of two models' figures.

    A ratio row divides medians of the same setting and rounds; `low` and `high` are then those of
    a bootstrap interval of 95 %.
    """

    what: str  # the quantity: latency, peak_memory, ...
    model: str
    backend: str
    precision: str
    batch: int
    threads: int
    input: str  # height x width in pixels, a grid of patches, or a data set
    device: str
    machine: str
    versions: str
    commit: str
    date: str
    value: float  # the median, if there is a distribution
    low: float  # 10th percentile
    high: float  # 90th percentile
    repeats: int  # 0: not measured, the note says why
    unit: str = ""
    note: str = ""
    baseline: str = ""  # of ratio rows: what the model is divided by

    @property
    def competitor(self) -> tuple[str | int, ...]:
        """Fields that all figures of one model in one setting on one machine share."""
        setting = (self.backend, self.precision, self.batch, self.threads, self.input)
        return (self.model, *setting, self.device, self.machine)

    @property
    def key(self) -> tuple[str | int, ...]:
        """Fields that a newer row shares with the one that it replaces."""
        return (self.what, self.baseline, *self.competitor)


def make_row(
    what: str,
    value: float,
    unit: str,
    setting: Setting,
    environment: Environment,
    repeats: int = 1,
    note: str = "",
) -> Row:
    """Make the row of a figure without a distribution: a count, a peak, an accuracy.

    Args:
        what: the quantity.
        value: the figure.
        unit: its unit.
        setting: the model, and how it ran.
        environment: where and when.
        repeats: measurements, or images, behind the figure.
        note: anything else that a reader needs.
    """
    spread = Spread(value, value, value, repeats)
    return _row(what, spread, unit, setting, environment, note)


def latency_row(
    what: str,
    times_ms: Sequence[float],
    setting: Setting,
    environment: Environment,
    note: str = "",
) -> Row:
    """Make the row of times in ms; arguments as in `make_row`."""
    return _row(what, summarise(times_ms), "ms", setting, environment, note)


def with_value(
    row: Row, what: str, value: float, unit: str, repeats: int = 1, note: str = ""
) -> Row:
    """Return another figure of the same competitor and moment, without a distribution."""
    row = replace(row, what=what, unit=unit, repeats=repeats, note=note)
    return replace(row, value=value, low=value, high=value)


def throughput_row(row: Row, what: str, amount: float, unit: str) -> Row:
    """Turn the row of a time into what is done in a second; the 10th percentile is the slow end.

    Args:
        row: times in ms.
        what: the quantity.
        amount: what one call does, in `unit` times a second.
        unit: of the result.
    """
    value, low, high = (1e3 * amount / ms for ms in (row.value, row.high, row.low))
    return replace(row, what=what, value=value, low=low, high=high, unit=unit, note="")


def ratio_row(
    row: Row, times_ms: Sequence[float], baseline: str, baseline_ms: Sequence[float]
) -> Row:
    """Divide the median of one competitor by that of another.

    Args:
        row: the times that are divided.
        times_ms: the same times, by round.
        baseline: name of the other competitor.
        baseline_ms: its times, from the same rounds.
    """
    ratio = asdict(ratio_of_medians(times_ms, baseline_ms))
    return replace(row, **ratio, unit="", note="", baseline=baseline)


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
    return Environment(device, machine_name(device), versions, current_commit(), now)


def _row(
    what: str,
    spread: Spread,
    unit: str,
    setting: Setting,
    environment: Environment,
    note: str,
) -> Row:
    fields = {**asdict(setting), **asdict(environment), **asdict(spread)}
    return Row(what=what, unit=unit, note=note, **fields)


def current_commit(folder: Path = Path(__file__).parent) -> str:
    """Return the commit of the repository around a folder, with -dirty if files were changed.

    Changed results do not count: otherwise the rows that one benchmark saves would make the next
    one's rows dirty.
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
