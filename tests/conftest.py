"""What all tests share: one thread a process, a fixed seed, a cache of their own, no override."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from autoformer_zoo.network.attention import FORM_VARIABLE

torch.set_num_threads(1)  # tests run several processes at a time, with small tensors


@pytest.fixture(autouse=True)
def _same_start(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv(FORM_VARIABLE, raising=False)
    # Latency profiles of hurried tests must not become those of the machine.
    monkeypatch.setenv("AUTOFORMER_ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """The folder that holds cifar-10-batches-py; tests marked `data` need it."""
    root = os.environ.get("AUTOFORMER_ZOO_DATA")
    if not root:
        pytest.fail("set AUTOFORMER_ZOO_DATA to the folder that holds cifar-10-batches-py")
    return Path(root)
