"""Tells whether weights and modules still are what something was derived from, in a few reads.

`inference_plan.py` asks before every forward pass of a network, of everything in it at once, so
these go past `nn.Module.__getattr__`, which alone would take longer than all the rest.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator

from torch import Tensor, nn

_BY_SIZE = {
    1: ctypes.c_uint8,
    2: ctypes.c_uint16,
    4: ctypes.c_uint32,
    8: ctypes.c_uint64,
}
# Plain attributes of modules that change what they compute. Their classes are watched too.
_SETTINGS = ("approximate", "eps", "form", "normalized_shape", "num_heads")


def is_watchable(tensor: Tensor) -> bool:
    """Tell whether changes of a tensor can be seen.

    Inference tensors have no version, and subclasses, empty tensors and other devices no address to
    read from.
    """
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and not tensor.is_inference()
        and tensor.is_cpu
        and tensor.numel() > 0
    )


class TensorWatch:
    """Sees when the values of a tensor in the processor's memory change.

    A change through `tensor.data` leaves the version as it is. That of all values, or a replaced
    storage, shows in the address or the first value; that of a few other values does not.

    Args:
        tensor: `is_watchable`; held, so that nothing else takes its place in memory.
    """

    __slots__ = ("_address", "_dtype", "_first", "_place", "_tensor", "_version")

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._address = tensor.data_ptr()
        self._version = tensor._version
        self._dtype = tensor.dtype
        # tensor[0].item() says the same in a dozen times as long.
        self._place = _BY_SIZE[tensor.element_size()].from_address(self._address)
        self._first = self._place.value

    def is_unchanged(self) -> bool:
        """Compare with what was there at the start."""
        tensor = self._tensor
        return (
            tensor.data_ptr() == self._address  # first: the place may be read while this holds
            and tensor._version == self._version
            and tensor.dtype == self._dtype
            and self._place.value == self._first
        )


class ModuleWatch:
    """Sees when modules, or any module in them, are not what they were.

    That is: another class, mode or setting, a hook, a replaced `forward`, child or parameter. Of
    those parameters alone that are asked for, the values are watched.

    Args:
        modules: the modules, each with all its children.
        by_value: parameters to watch the values of; all `is_watchable`.
    """

    def __init__(self, modules: Iterable[nn.Module], by_value: Iterable[Tensor]) -> None:
        found = [each for module in modules for each in module.modules()]
        self._modules = found
        self._owns = [module.__dict__ for module in found]
        self._parents = [own["_modules"] for own in self._owns if own["_modules"]]
        self._owners = [own["_parameters"] for own in self._owns if own["_parameters"]]
        self._settings = [(own, name) for own in self._owns for name in _SETTINGS if name in own]
        self._values = [TensorWatch(tensor) for tensor in by_value]
        self._parameters = list(self._find_parameters())  # held: an identity may not come again
        self._before = self._read()

    def is_unchanged(self) -> bool:
        """Compare with what was there at the start."""
        return self._read() == self._before and all(watch.is_unchanged() for watch in self._values)

    def _read(self) -> tuple[list[object], ...]:
        return (
            [type(module) for module in self._modules],
            [
                (own["training"], len(own["_forward_hooks"]), len(own["_forward_pre_hooks"]))
                for own in self._owns
            ],
            [own.get("forward") for own in self._owns],
            [child for children in self._parents for child in children.values()],
            [own.get(name) for own, name in self._settings],
            [id(parameter) for parameter in self._find_parameters()],
        )

    def _find_parameters(self) -> Iterator[Tensor | None]:
        for parameters in self._owners:
            yield from parameters.values()
