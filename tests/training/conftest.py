"""What tests of training share beside `tests.helpers.made_training`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.made_training import split_in_memory, write_folder
from training.data import open as data_open


@pytest.fixture
def made_up_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on made-up images wherever a config names CIFAR-10 in memory."""
    monkeypatch.setattr(data_open, "load_train", split_in_memory)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of four classes in ImageNet's layout, for tests that change nothing in it."""
    return write_folder(tmp_path_factory.mktemp("images"))
