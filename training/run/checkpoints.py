"""Checkpoints of a run: written whole or not at all, the last two kept.

A checkpoint is written under a temporary name, flushed to the disk, and renamed; the one before it
stays as checkpoint-previous.pt. If the newest one is damaged, it is set aside and the one before is
taken: a run of weeks must not depend on the disk that was full at its last step.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from autoformer_zoo.weights.checkpoint import CheckpointError
from training.run.directory import write_atomic

NEWEST = "checkpoint.pt"
PREVIOUS = "checkpoint-previous.pt"

_MAX_REASON = 200  # characters
_log = logging.getLogger(__name__)


def save_checkpoint(values: Mapping[str, Any], run: Path) -> None:
    """Write a checkpoint; the newest one so far becomes the previous one.

    Raises:
        OSError: it cannot be written, as on a full disk; those that were there are whole.
    """
    try:
        with write_atomic(run / NEWEST) as temporary:
            with temporary.open("wb") as file:
                torch.save(dict(values), file)
                file.flush()
                os.fsync(file.fileno())  # a rename may reach the disk before the content does
            if (run / NEWEST).exists():
                os.replace(run / NEWEST, run / PREVIOUS)
    except (OSError, RuntimeError) as error:  # the latter if torch's writer was cut short
        left = "the last one is whole" if has_checkpoint(run) else "there is none yet"
        raise OSError(
            f"no checkpoint could be written to {run} ({error}); {left}: make room and give the "
            "same command again"
        ) from error


def has_checkpoint(run: Path) -> bool:
    """Return True if a run has a checkpoint, whole or not."""
    return any((run / name).exists() for name in (NEWEST, PREVIOUS))


def load_checkpoint(run: Path, device: torch.device | None = None) -> dict[str, Any]:
    """Load the newest whole checkpoint: "network" and "ema" are state dicts.

    Args:
        run: the run directory.
        device: where tensors are put; None for the CPU.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        CheckpointError: none is whole.
    """
    return newest_whole(run, device)[0]


def newest_whole(run: Path, device: torch.device | None = None) -> tuple[dict[str, Any], str]:
    """Load the newest whole checkpoint and return it with its name: NEWEST or PREVIOUS."""
    if not has_checkpoint(run):
        raise FileNotFoundError(
            f"{run / NEWEST} does not exist; train first: python -m training.train"
        )
    reasons = []
    for name in (NEWEST, PREVIOUS):
        if not (run / name).exists():
            continue
        try:
            return _load(run / name, device), name
        # Damaged bytes make the unpickler raise errors of any kind, from deep inside of it.
        except Exception as error:
            reasons.append(f"{name}: {reason_of(error)}")
            _log.warning("%s is damaged; trying the one before", run / name)
    raise CheckpointError(
        f"no checkpoint of {run} is whole ({'; '.join(reasons)}); start again with another --out"
    )


def set_damaged_aside(run: Path) -> None:
    """Keep a damaged newest checkpoint from becoming the previous one."""
    if (run / NEWEST).exists():
        os.replace(run / NEWEST, run / "checkpoint-damaged.pt")


def reason_of(error: BaseException) -> str:
    """Return an error's text as one line of bearable length; its type if there is no text."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= _MAX_REASON else f"{line[:_MAX_REASON]}..."


def _load(path: Path, device: torch.device | None) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        if broken := archive.testzip():  # torch.load checks no sums
            raise ValueError(f"its record {broken} is damaged")
    values: dict[str, Any] = torch.load(path, map_location=device or "cpu", weights_only=True)
    if "ema" not in values or "step" not in values:
        raise ValueError("it is not a checkpoint of a run")
    return values
