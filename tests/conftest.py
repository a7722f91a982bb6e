"""What all tests share: one thread a process, a fixed seed, no override of the attention form."""

from __future__ import annotations

import pytest
import torch

from autoformer_zoo.attention import FORM_VARIABLE

torch.set_num_threads(1)  # tests run several processes at a time, with small tensors


@pytest.fixture(autouse=True)
def _same_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FORM_VARIABLE, raising=False)
    torch.manual_seed(0)
