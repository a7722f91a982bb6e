"""Products with weights on the CPU, and linear layers whose weight is stored packed for them.

On AMD's processors with AVX-512 oneDNN is the faster library. It reads a weight where it is, or,
faster by a twentieth, packed: stored in its own blocked layout. MKL, PyTorch's choice for fp32, has
a packed layout too, but on Intel's processors, where MKL is the faster library, it saved nothing
(0.99 to 1.02 of the time), so there the weight is stored as it is. `frozen.py` packs.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoformer_zoo.network.workspace import is_plain_inference

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_reorder_linear_weight"
)
# One overload each: to look it up takes longer than the rest of the call.
_onednn_linear = torch.ops.mkldnn._linear_pointwise.default if HAS_ONEDNN else None
_gelu_ = torch.ops.aten.gelu_.default
TYPICAL_ROWS = 197  # of inputs; oneDNN picks the layout for about this many, any number is correct
CPUINFO = Path("/proc/cpuinfo")
PLAIN = (Tensor, nn.Parameter)  # classes of weights; a subclass has products of its own


@cache
def is_onednn_faster() -> bool:
    """Return True if oneDNN's products are the fastest on this processor.

    MKL runs AVX2 code on processors that are not Intel's: on two cores of a Zen 5, 213 GFLOP/s
    against oneDNN's 503 (1576 x 192 by 576); on a Zen 4, 86 against 94. On Intel's, MKL was ahead
    by a tenth.
    """
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return HAS_ONEDNN and has_avx512 and "Intel" not in processor("vendor_id")


@cache
def has_bf16_products() -> bool:
    """Return True if oneDNN multiplies bf16 on this processor."""
    return HAS_ONEDNN and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def processor(field: Literal["vendor_id", "model name"]) -> str:
    """Return a field of the first processor on Linux; elsewhere what Python has, maybe nothing."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(field))
    return next(values, platform.processor())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """Return x @ weight.T + bias, or its GELU by the error function, in plain inference.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features), packed or not.
        bias: (out_features,).
        gelu: apply the activation.
    """
    if _onednn_linear is not None and (weight.is_mkldnn or _suits_onednn(weight)):
        # A fused GELU is up to 17 % faster: memory is not fetched again.
        kind, algorithm = ("gelu", "none") if gelu else ("none", "")
        bias = bias if bias is None else bias.contiguous()  # it reads others as if they were
        product: Tensor = _onednn_linear(x, weight, bias, kind, [], algorithm)
        return product
    product = F.linear(x, weight, bias)
    return _gelu_(product) if gelu else product


def _suits_onednn(weight: Tensor) -> bool:
    """Return True if oneDNN is the faster library for a weight that is not packed, too."""
    if weight.layout is not torch.strided:  # sparse
        return False
    if weight.dtype == torch.bfloat16:  # PyTorch's own choice as well, but without GELU
        return has_bf16_products() and weight.is_contiguous()
    return is_onednn_faster() and weight.dtype == torch.float32 and weight.is_contiguous()


class PackedLinear(nn.Linear):
    """A linear layer without the parameter `weight`: it has no memory that could be written to.

    Its bias stays a parameter.
    """

    packed: Tensor

    @classmethod
    def convert(cls, linear: nn.Linear) -> None:
        """Turn a linear layer into a packed one, in place: its hooks and its name stay."""
        weight = linear.weight.detach()
        del linear.weight
        linear.__class__ = cls
        linear.__dict__["packed"] = _pack(weight)

    def dense(self) -> Tensor:
        """Return a copy of the weight (out_features, in_features)."""
        return self.packed.to_dense() if self.packed.is_mkldnn else self.packed.clone()

    def forward(self, x: Tensor) -> Tensor:
        """Return x @ weight.T + bias for x (..., in_features)."""
        # Autograd, counters and tracers need PyTorch's own product.
        if is_plain_inference(x, ()):
            return linear(x, self.packed, self.bias)
        return F.linear(x, self.dense(), self.bias)

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError("a frozen model has no weights to read or write; keep the model")
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("weight", "packed", "_parameters"):
            raise AttributeError("a frozen model's weights are fixed; change the model, freeze it")
        super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Refuse a weight, which would not be used."""
        if name == "weight":
            setattr(self, name, param)
        super().register_parameter(name, param)

    def __getstate__(self) -> dict[str, Any]:  # packed for this processor; another may differ
        return {**self.__dict__, "packed": self.dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.__dict__["packed"] = _pack(self.packed)

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLinear:
        require_no_conversion(fn, self.packed.dtype)
        return self

    def _save_to_state_dict(self, *_: Any) -> None:
        raise RuntimeError("a frozen model has no weights to save; save the model that was frozen")

    def _load_from_state_dict(self, *args: Any) -> None:
        args[-1].append("a frozen model takes no weights; load them before freezing it")


def require_no_conversion(fn: Any, dtype: torch.dtype) -> None:
    """Raise RuntimeError if `fn`, as of `nn.Module._apply`, changes a type or device."""
    before = torch.empty(1, dtype=dtype)
    after = fn(before)
    if (after.dtype, after.device) != (before.dtype, before.device):
        raise RuntimeError("a frozen model stays on its device, in its type; convert, then freeze")


def _pack(weight: Tensor) -> Tensor:
    weight = weight.contiguous()
    if weight.is_cpu and _suits_onednn(weight):
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)
        return packed
    return weight.clone()
