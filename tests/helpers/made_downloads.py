"""What tests of downloads share: an official file, a server that has it, a cache of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor

import autoformer_zoo as az
from autoformer_zoo.weights import pretrained
from autoformer_zoo.weights.sources import SOURCES, UpstreamFile
from tests.helpers.loopback import Loopback, Reply, serve
from tests.helpers.made_weights import SIZES, SUBNET, make_supernet, supernet_file

OFFICIAL = make_supernet(bias_rule="packed_prefix")
OFFICIAL_FILE = supernet_file(OFFICIAL)
PATH = "/supernet-tiny.pth"


def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a test a cache of its own, and keep it off proxies; returns the folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(pretrained.CACHE_VARIABLE, str(folder))
    monkeypatch.delenv(pretrained.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return folder


@contextmanager
def serve_official() -> Iterator[Loopback]:
    """Serve the official file."""
    with serve({PATH: Reply(OFFICIAL_FILE)}) as loopback:
        yield loopback


def create(url: str, name: str = "autoformer_tiny", **kwargs: Any) -> torch.nn.Module:
    """Make a small model of a tag whose source is redirected to `url`."""
    overlay = {"url": url}
    arguments = {"subnet": SUBNET, "pretrained_cfg_overlay": overlay, **SIZES, **kwargs}
    return az.create_model(name, True, **arguments)


def redirect(monkeypatch: pytest.MonkeyPatch, name: str, url: str, **changes: Any) -> UpstreamFile:
    """Change the table itself, where the tag's own hash and kind matter."""
    source = replace(SOURCES[name], url=url, **changes)
    monkeypatch.setattr(pretrained, "SOURCES", MappingProxyType({**SOURCES, name: source}))
    return source


def assert_has(model: torch.nn.Module, tensors: Any) -> None:
    """Compare a model's tensors with others, bit by bit."""
    state: dict[str, Tensor] = model.state_dict()
    assert state.keys() == dict(tensors).keys()
    for name, tensor in tensors.items():
        assert torch.equal(state[name], tensor), name


def left(cache: Path) -> list[str]:
    """Return the names of what is in a cache."""
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []
