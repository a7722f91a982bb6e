"""Stop on SIGTERM and SIGINT after the current step, so that a checkpoint can be written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass(slots=True)
class StopRequest:
    """The signal that was received, or 0."""

    signal: int = 0


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Note SIGTERM and SIGINT instead of ending at once; a second one ends at once.

    Outside the main thread nothing is caught: Python allows handlers there only.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: FrameType | None) -> None:
        request.signal = number
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
