"""Linear layers through MKL's packed weights, in plain inference on the CPU.

MKL copies a weight into its own order on every product. For one picture of 197 tokens that is a
tenth to a fifth of the time, so the packed copy is kept, as torch.compile does when it freezes a
model, and made anew when the weight changes. The layer stays an ordinary `nn.Linear` with its state
dict, hooks and subclasses; wherever packing does not apply, the layer itself is called.

Costs as much memory as the weights, while a model is used so.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from autoformer_zoo.attention import is_plain_inference
from autoformer_zoo.fingerprint import fingerprint

MOST_ROWS = 4096  # measured: above this nothing is left to gain


class LinearCache:
    """Calls linear layers, and keeps their packed weights.

    A batch size is packed for when it comes the second time in a row, so that single pictures of
    ever new sizes pay nothing.
    """

    def __init__(self) -> None:
        self._kept: dict[nn.Linear, tuple[Hashable, Tensor | None]] = {}

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return `layer(x)` for x (..., C)."""
        if not is_plain_inference(x) or not _is_plain_linear(layer, x):
            return layer(x)
        rows = x.numel() // x.shape[-1]
        if not 0 < rows <= MOST_ROWS:
            return layer(x)
        weight = layer.weight
        key = (rows, fingerprint(weight))
        if key[1] is None:
            return layer(x)
        kept_key, packed = self._kept.get(layer, (None, None))
        if kept_key != key:
            self._kept[layer] = key, None
            return layer(x)
        if packed is None:
            packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.detach(), rows)
            self._kept[layer] = key, packed
        return torch.ops.mkl._mkl_linear(x, packed, weight, layer.bias, rows)

    def clear(self) -> None:
        """Forget all packed weights."""
        self._kept.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> LinearCache:
        return LinearCache()

    def __reduce__(self) -> tuple[type[LinearCache], tuple[()]]:
        return LinearCache, ()  # files hold parameters only


_HAS_PACKED = torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


def _is_plain_linear(layer: nn.Module, x: Tensor) -> TypeGuard[nn.Linear]:
    """Tell whether calling `layer` means nothing but one float32 product and a bias."""
    return (
        _HAS_PACKED
        and type(layer) is nn.Linear  # not LoRA's, not a quantised one
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and x.dtype == layer.weight.dtype == torch.float32
        and x.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._len_torch_dispatch_stack()  # counters and fakes want to see the product
    )
