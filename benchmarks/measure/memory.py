"""Peak memory of a call, and of a whole model in a process of its own.

On the CPU it is the kernel's record of the process' largest resident set (Linux only), on CUDA the
allocator's. On the CPU a model gets a process of its own, because memory that another one left in
the allocator would be used again without being counted. Its peak is everything that the model adds
to the imported libraries: weights, what is derived from them, and the memory of a forward pass.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from autoformer_zoo.specialization.latency.network_runs import open_session
from benchmarks.measure.models import DTYPES, build, frozen
from benchmarks.measure.rows import Setting

Result = TypeVar("Result")

RESET_PEAK = "5"  # of /proc/self/clear_refs, see proc(5)
WARM_UP = "test_vit"  # timm's smallest: its first pass maps the libraries' code into memory
PASSES = 2
MIB = 2**20

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def can_measure(device: str) -> bool:
    """Return True if the peak can be measured: on CUDA, and on Linux."""
    return device == "cuda" or (_STATUS.exists() and _CLEAR.exists())


def peak_of_call(call: Callable[[], object], device: str = "cpu") -> int | None:
    """Return how many bytes a call takes at its peak, beyond what is in use before it.

    Returns:
        None if the system does not record it; the call is then not made.
    """
    if not can_measure(device):
        return None
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return int(torch.cuda.max_memory_allocated()) - before
    # Freed memory goes back to the system first: used again, it would not raise the peak.
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc only
        trim(0)
    _CLEAR.write_text(RESET_PEAK)
    before = _status_bytes("VmRSS")
    call()
    return max(_status_bytes("VmHWM") - before, 0)


def apart(device: str, function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function that measures a peak: on the CPU in a new process, on CUDA in this one."""
    return function(*arguments) if device == "cuda" else in_new_process(function, *arguments)


def in_new_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function of a module in a new process and return its result.

    Raises:
        OSError: the process died, perhaps because there was too little memory.
        Exception: whatever the function raises.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share this process' allocator
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        try:
            return executor.submit(function, *arguments).result()
        except BrokenProcessPool:
            name = function.__name__
            raise OSError(f"the process of {name} died; there may be too little memory") from None


def torch_peak(spec: str, img_size: int, setting: Setting, device: str) -> int | None:
    """Return the peak in bytes of a model and its forward passes; see `apart`.

    Args:
        spec: NAME or NAME@FORM.
        img_size: input side in pixels.
        setting: precision, batch and threads.
        device: "cpu" or "cuda".
    """
    dtype = DTYPES[setting.precision]

    def run(name: str, side: int | None, batch: int) -> None:
        model = build(name, side)
        module = frozen(model.module.to(device, dtype))
        images = torch.zeros(batch, *model.input_size, device=device, dtype=dtype)
        with torch.inference_mode():
            for _ in range(PASSES):
                module(images)

    torch.set_num_threads(setting.threads)
    run(WARM_UP, None, 1)
    return peak_of_call(lambda: run(spec, img_size, setting.batch), device)


def onnx_peak(path: Path, input_size: tuple[int, int, int], setting: Setting) -> int | None:
    """Return the peak in bytes of an ONNX file and its runs on the CPU; for a new process."""
    import onnxruntime  # noqa: F401  (its libraries are not part of the model)

    def run() -> None:
        session = open_session(path, setting.threads)
        images = np.zeros((setting.batch, *input_size), np.float32)
        for _ in range(PASSES):
            session.run(None, {session.get_inputs()[0].name: images})

    return peak_of_call(run)


def _status_bytes(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    value = next(line for line in lines if line.startswith(f"{field}:"))
    return int(value.split()[1]) * 1024  # the kernel says kB and means KiB
