"""Stop on SIGTERM and SIGINT after the step at hand, so that a checkpoint can be written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass(slots=True)
class StopRequest:
    """The signal that came, or 0."""

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
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: FrameType | None) -> None:
        request.signal = number
        for each, handler in before.items():
            signal.signal(each, handler)

    for each in before:
        signal.signal(each, note)
    try:
        yield request
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
