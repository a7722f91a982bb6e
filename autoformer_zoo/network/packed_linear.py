"""Linear layers with weights kept in the order that products want them in.

A library for products copies a weight into its own order on every call, or takes it as it lies and
loses more; kept copies spare both, at the cost of as much memory as the weights. Two libraries come
with PyTorch, and which one is faster depends on the processor: see `packing_library`.
`plan.py` is the one that uses this.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Library = Literal["mkl", "onednn"]

HAS_MKL = torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_reorder_linear_weight"
)
# One overload each: looking for it takes longer than the rest of the call.
_gelu_ = torch.ops.aten.gelu_.default
_mkl_linear = torch.ops.mkl._mkl_linear.default if HAS_MKL else None
_onednn_linear = torch.ops.mkldnn._linear_pointwise.default if HAS_ONEDNN else None


@cache
def packing_library() -> Library | None:
    """Name the library whose fp32 products are the faster ones here; None where neither packs.

    MKL takes its AVX2 code on processors that are not Intel's: on two cores of a Zen 5, 213 GFLOP/s
    against oneDNN's 503 (1576 x 192 by 576). On Intel's, MKL was ahead by a tenth.
    """
    is_fast = HAS_ONEDNN and torch.backends.cpu.get_cpu_capability() == "AVX512"
    if is_fast and "Intel" not in processor("vendor_id"):
        return "onednn"
    return "mkl" if HAS_MKL else None


@dataclass(frozen=True, slots=True)
class LinearStep:
    """A linear layer: its parameters, and the weight in a library's own order."""

    weight: Tensor
    bias: Tensor | None
    packed: Tensor | None = None
    rows: int = 0  # of the input that MKL packed for; oneDNN's order is for any

    def pack(self, library: Library, rows: int) -> LinearStep:
        """Pack the weight for inputs of so many rows."""
        weight = self.weight.detach()
        if library == "onednn":
            return replace(self, packed=torch.ops.mkldnn._reorder_linear_weight(weight, rows))
        packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
        return replace(self, packed=packed, rows=rows)

    def run(self, x: Tensor) -> Tensor:
        """Return the product with x (..., C) plus the bias; right for any number of rows."""
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        if self.rows and _mkl_linear is not None:
            return _mkl_linear(x, self.packed, self.weight, self.bias, self.rows)
        assert _onednn_linear is not None  # or nothing would be packed
        return _onednn_linear(x, self.packed, self.bias, "none", [], "")

    def run_gelu(self, x: Tensor) -> Tensor:
        """Return GELU, by the error function, of what `run` returns."""
        if self.packed is None or self.rows or _onednn_linear is None:
            return _gelu_(self.run(x))
        # Up to 17 % faster than both apart, for memory that need not be fetched again.
        return _onednn_linear(x, self.packed, self.bias, "gelu", [], "none")


CPUINFO = Path("/proc/cpuinfo")


def processor(field: Literal["vendor_id", "model name"]) -> str:
    """Return what Linux says of the processor; elsewhere all that Python knows, maybe nothing."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(field))
    return next(values, platform.processor())
