"""A cache of its own for each test, and a server that has the official file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from autoformer_zoo.weights import pretrained
from tests.helpers.loopback import Loopback, Reply, serve
from tests.helpers.made_downloads import OFFICIAL_FILE, PATH


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(pretrained.CACHE_VARIABLE, str(folder))
    monkeypatch.delenv(pretrained.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return folder


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serve({PATH: Reply(OFFICIAL_FILE)}) as loopback:
        yield loopback
