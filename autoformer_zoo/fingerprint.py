"""Tells whether a tensor still holds what was derived from it, at the cost of a few reads.

Packed weights and constants of the attention are kept between calls; this says when they are stale.
"""

from __future__ import annotations

import ctypes
from collections.abc import Hashable

from torch import Tensor, nn

_BY_SIZE = {
    1: ctypes.c_uint8,
    2: ctypes.c_uint16,
    4: ctypes.c_uint32,
    8: ctypes.c_uint64,
}


def fingerprint(tensor: Tensor) -> Hashable | None:
    """Return a value that changes when a tensor in the processor's memory does.

    A change through `tensor.data` leaves the version as it is. That of all values, or a replaced
    storage, shows in the address or the first value; that of a few other values does not.

    Args:
        tensor: any; read, not kept.

    Returns:
        The value to compare, or None where changes could not be seen: inference tensors have no
        version, and subclasses, empty tensors and other devices no address to read.
    """
    if (
        type(tensor) not in (Tensor, nn.Parameter)
        or tensor.is_inference()
        or not tensor.is_cpu
        or not tensor.numel()
    ):
        return None
    address = tensor.data_ptr()
    # tensor[0].item() says the same in a dozen times as long, and this runs for every layer.
    first = _BY_SIZE[tensor.element_size()].from_address(address).value
    return address, tensor._version, tensor.dtype, first
