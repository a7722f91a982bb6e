"""What the processor is; standard library only."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal

CPUINFO = Path("/proc/cpuinfo")


def processor(field: Literal["vendor_id", "model name"]) -> str:
    """Return what Linux says of the processor; elsewhere all that Python knows, maybe nothing."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(field))
    return next(values, platform.processor())
