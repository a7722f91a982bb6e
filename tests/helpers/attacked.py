"""Run a reader on hostile input in a process of its own, and measure what that costs."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """What reading hostile input did.

    Args:
        error: class name of the exception, "" if there was none.
        text: its message.
        seconds: of processor time until then.
        extra_bytes: by which the most memory in use grew.
    """

    error: str
    text: str
    seconds: float
    extra_bytes: int


def attack(read: Callable[[], Any], limit_seconds: float = 120) -> Outcome:
    """Call `read` in a child of this process, with what is imported here imported there."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(read, sender))
    child.start()
    try:
        if receiver.poll(limit_seconds):
            return receiver.recv()
        raise AssertionError(f"no answer within {limit_seconds} s")
    except EOFError:
        raise AssertionError(f"the reader died with exit code {child.exitcode}") from None
    finally:
        child.kill()
        child.join()


def _measure(read: Callable[[], Any], sender: Any) -> None:
    before, start = _peak_bytes(), time.process_time()
    error, text = "", ""
    try:
        read()
    except BaseException as caught:
        error, text = type(caught).__name__, str(caught)
    sender.send(Outcome(error, text, time.process_time() - start, _peak_bytes() - before))


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
