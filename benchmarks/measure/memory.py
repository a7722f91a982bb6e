"""Peak memory of a call, and of a whole model in a process of its own.

On the CPU it is the kernel's record of the process' largest resident set (Linux only), on CUDA the
allocator's. A model gets a process of its own, because what another one left in the allocator
would be used again without being counted: `python -m benchmarks.measure.memory` is that process.
What it reports is all that the model adds to the imported libraries: weights, whatever is derived
from them, and the working memory of a forward pass.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.measure.competitors import Competitor

RESET_PEAK = "5"  # of /proc/self/clear_refs, see proc(5)
WARM_UP = "test_vit"  # timm's smallest: its first pass maps the libraries' code into memory
PASSES = 2
MIB = 2**20

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """How far memory rises above where it was when this object was made.

    Args:
        device: "cpu" or "cuda".
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._start = 0
        self.restart()

    def restart(self) -> None:
        """Count from now on; memory that nothing uses goes back to the system first."""
        gc.collect()
        if self._device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
        elif can_measure(self._device):
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
            if trim is not None:
                trim(0)
            _CLEAR.write_text(RESET_PEAK)
            self._start = _status_bytes("VmRSS")

    @property
    def rise(self) -> int | None:
        """Bytes above the start, None where the system does not tell."""
        if self._device == "cuda":
            import torch

            return int(torch.cuda.max_memory_allocated()) - self._start
        if not can_measure(self._device):
            return None
        return max(_status_bytes("VmHWM") - self._start, 0)


def can_measure(device: str) -> bool:
    """Tell whether the peak is known: on CUDA, and on Linux."""
    return device == "cuda" or (_STATUS.exists() and _CLEAR.exists())


def peak_of_call(run: Callable[[], object], device: str = "cpu") -> int | None:
    """Return how many bytes a call takes at its worst, beyond what was in use before it."""
    peak = PeakMemory(device)
    run()
    return peak.rise


def peak_of_model(
    spec: str,
    input_size: tuple[int, int, int],
    batch: int,
    threads: int,
    device: str = "cpu",
    precision: str = "fp32",
    attention: str = "auto",
    onnx_file: Path | None = None,
) -> float | None:
    """Return how many MiB a model takes at its worst, measured in a new process.

    Args:
        spec: NAME or NAME@FORM.
        input_size: channels, height and width in pixels.
        batch: images.
        threads: of torch or onnxruntime.
        device: "cpu" or "cuda".
        precision: of weights and images.
        attention: form of this package's models whose name fixes none.
        onnx_file: run this file in onnxruntime, without torch in the process.

    Raises:
        OSError: the process failed; the text has its last line.
    """
    if not can_measure(device):
        return None
    job = {
        "spec": spec,
        "input_size": input_size,
        "batch": batch,
        "threads": threads,
        "device": device,
        "precision": precision,
        "attention": attention,
        "onnx_file": str(onnx_file) if onnx_file else None,
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.measure.memory", json.dumps(job)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise OSError(f"measuring the memory of {spec} failed: {last}")
    return int(done.stdout.splitlines()[-1]) / MIB


def main() -> int:
    """Do one job of `peak_of_model` and print the bytes."""
    job = json.loads(sys.argv[1])
    print(_onnx_peak(job) if job["onnx_file"] else _torch_peak(job))
    return 0


def _torch_peak(job: Mapping[str, Any]) -> int | None:
    import torch

    from benchmarks.measure.competitors import DTYPES, build

    def run(competitor: Competitor, batch: int) -> None:
        module = competitor.module.to(job["device"], dtype)
        images = torch.zeros(batch, *competitor.input_size, device=job["device"], dtype=dtype)
        with torch.inference_mode():
            for _ in range(PASSES):
                module(images)

    dtype = DTYPES[job["precision"]]
    torch.set_num_threads(job["threads"])
    run(build(WARM_UP), 1)
    peak = PeakMemory(job["device"])
    side = job["input_size"][1]
    run(build(job["spec"], side, job["attention"]), job["batch"])
    return peak.rise


def _onnx_peak(job: Mapping[str, Any]) -> int | None:
    import numpy as np
    import onnxruntime  # noqa: F401  (its libraries are no part of the model)

    from benchmarks.measure.onnx_sessions import make_session

    peak = PeakMemory("cpu")
    session = make_session(Path(job["onnx_file"]), job["threads"])
    images = np.zeros((job["batch"], *job["input_size"]), np.float32)
    for _ in range(PASSES):
        session.run(None, {session.get_inputs()[0].name: images})
    return peak.rise


def _status_bytes(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    value = next(line for line in lines if line.startswith(f"{field}:"))
    return int(value.split()[1]) * 1024  # the kernel says kB and means KiB


if __name__ == "__main__":
    sys.exit(main())
