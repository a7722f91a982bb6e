"""What tests of downloads share: an official file, and models whose source is redirected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

import autoformer_zoo as az
from autoformer_zoo.weights import pretrained
from autoformer_zoo.weights.sources import SOURCES, UpstreamFile
from tests.helpers.made_weights import SIZES, SUBNET, make_supernet, supernet_file

OFFICIAL = make_supernet(bias_rule="packed_prefix")
OFFICIAL_FILE = supernet_file(OFFICIAL)
PATH = "/supernet-tiny.pth"


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


def left(cache: Path) -> list[str]:
    """Return the names of what is in a cache."""
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []
