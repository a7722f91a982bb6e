"""A fingerprint changes with the values, and is None where it could not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from autoformer_zoo.fingerprint import fingerprint


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.mul_(2),
        lambda tensor: tensor.data.mul_(2),
        lambda tensor: setattr(tensor, "data", tensor * 2),
        lambda tensor: tensor[1:].fill_(3),
    ],
    ids=["in place", "data in place", "data replaced", "a part in place"],
)
def test_fingerprint_changes_with_the_values(
    dtype: torch.dtype, change: Callable[[Tensor], object]
) -> None:
    tensor = torch.ones(3, 2, dtype=dtype)
    before = fingerprint(tensor)
    assert before == fingerprint(tensor) is not None
    change(tensor)
    assert fingerprint(tensor) != before


def test_fingerprint_is_none_where_changes_cannot_be_seen() -> None:
    assert fingerprint(torch.empty(0)) is None
    assert fingerprint(torch.ones(1, device="meta")) is None
    with torch.inference_mode():
        assert fingerprint(torch.ones(1)) is None
    with FakeTensorMode():
        assert fingerprint(torch.ones(1)) is None
