"""Tells whether weights and modules still are what something was derived from, in a few reads.

`plan.py` asks before every forward pass of a network, of everything in it at once, so
these go past `nn.Module.__getattr__`, which alone would take longer than all the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

SAMPLED_ROWS = 64  # one row in so many is looked at: each head of an attention has one
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size in bytes
# What an instance may carry that changes what calling it does. Classes and hooks are read besides.
_SETTINGS = (
    *("_compiled_call_impl", "forward", "training"),
    *("approximate", "eps", "form", "normalized_shape", "num_heads"),
)


def is_watchable(tensor: Tensor) -> bool:
    """Tell whether changes of a tensor can be seen.

    Inference tensors have no version; subclasses, sparse and empty tensors and those on other
    devices have no values that could be read here.
    """
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and not tensor.is_inference()
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.is_conj()
        and tensor.numel() > 0
    )


class TensorWatch:
    """Sees when the values of a tensor in the processor's memory change.

    A change through `tensor.data` leaves the version as it is. It shows in the address, or in the
    values of the first row and the first of every 64th row: an ablated head, a scaled weight, a
    random mask. A change of single rows or values elsewhere does not show.

    Args:
        tensor: `is_watchable`, of two dimensions or more; its memory is held, so that no other
            tensor comes to lie at the same address.
    """

    __slots__ = ("_address", "_dtype", "_first", "_first_bytes", "_rows", "_rows_bytes", "_tensor",
                 "_version")  # fmt: skip

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._address = tensor.data_ptr()
        self._version = tensor._version
        self._dtype = tensor.dtype
        values = tensor.detach().view(_INTEGERS[tensor.element_size()])
        if values.is_contiguous():
            values = values.view(-1, values.shape[-1])
        elif values.dim() > 2:  # of a stack with gaps, the first matrix
            values = values[(0,) * (values.dim() - 2)]
        self._first, self._rows = values[0].numpy(), values[::SAMPLED_ROWS, 0].numpy()
        self._first_bytes, self._rows_bytes = self._first.tobytes(), self._rows.tobytes()

    def is_unchanged(self) -> bool:
        """Compare with what was there at the start."""
        tensor = self._tensor
        return (
            tensor.data_ptr() == self._address
            and tensor._version == self._version
            and tensor.dtype == self._dtype
            and self._first.tobytes() == self._first_bytes
            and self._rows.tobytes() == self._rows_bytes
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
        self._modules = [each for module in modules for each in module.modules()]
        self._classes = list({type(module) for module in self._modules})
        self._owns = [module.__dict__ for module in self._modules]
        self._hooks = self._named("_forward_hooks") + self._named("_forward_pre_hooks")
        self._parents, self._owners = self._named("_modules"), self._named("_parameters")
        self._values = [TensorWatch(tensor) for tensor in by_value]
        self._parameters = list(self._find_parameters())  # held: an identity may not come again
        self._before = self._read()

    def is_unchanged(self) -> bool:
        """Compare with what was there at the start."""
        return self._read() == self._before and all(watch.is_unchanged() for watch in self._values)

    def _named(self, name: str) -> list[dict[str, object]]:
        # Compiled and scripted modules have some of these elsewhere: they are never planned for.
        return [found for own in self._owns if isinstance(found := own.get(name), dict)]

    def _read(self) -> tuple[list[object], ...]:
        return (
            [type(module) for module in self._modules],
            [vars(each).get("forward") for each in self._classes],
            [len(hooks) for hooks in self._hooks],
            [own.get(name) for own in self._owns for name in _SETTINGS],
            [child for children in self._parents for child in children.values()],
            [id(parameter) for parameter in self._find_parameters()],
        )

    def _find_parameters(self) -> Iterator[object]:
        for parameters in self._owners:
            yield from parameters.values()
