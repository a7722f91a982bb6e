"""Stopwatches, and the state of the process while they run."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Call = Callable[[], object]
Stopwatch = Callable[[Call], float]
"""Makes one call and returns its time in ms."""


def stopwatch_for(device: str) -> Stopwatch:
    """Return the stopwatch of "cpu" or "cuda".

    Raises:
        ValueError: there is no CUDA.
    """
    require_device(device)
    return cuda_stopwatch() if device == "cuda" else wall_stopwatch()


def require_device(device: str) -> None:
    """Raise ValueError if the device is "cuda" and torch finds no CUDA."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch finds no CUDA here; use --device cpu")


def wall_stopwatch(clock: Callable[[], float] = time.perf_counter) -> Stopwatch:
    """Return a stopwatch for work that is done when the call returns, as on the CPU."""

    def time_once(call: Call) -> float:
        start = clock()
        call()
        return (clock() - start) * 1e3

    return time_once


def cuda_stopwatch() -> Stopwatch:
    """Return a stopwatch that reads CUDA events around the work, on an otherwise idle device."""
    events: Any = torch.cuda  # its Event is not annotated
    start, end = (events.Event(enable_timing=True) for _ in range(2))

    def time_once(call: Call) -> float:
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return time_once


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Let torch use this many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def collection_off() -> Iterator[None]:
    """Collect garbage now, then not until the block ends."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
